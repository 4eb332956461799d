package kubetest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/kubernetes"
)

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
	intercept, token := s.intercept, s.Token
	s.mu.Unlock()
	if intercept != nil && intercept(w, r) {
		return
	}
	if token != "" && r.Header.Get("Authorization") != "Bearer "+token {
		if r.Header.Get("Authorization") == "" {
			Fail(w, http.StatusForbidden, "Forbidden", `User "system:anonymous" cannot do that`)
		} else {
			Fail(w, http.StatusUnauthorized, "Unauthorized", "Unauthorized")
		}
		return
	}
	group, version, rest, ok := split(r.URL.Path)
	switch {
	case !ok:
		http.NotFound(w, r)
	case version == "":
		s.serveGroup(w, r, group)
	case len(rest) == 0:
		s.serveVersion(w, r, group, version)
	default:
		s.serveObjects(w, r, group, version, rest)
	}
}

// Fail answers with a Status.
func Fail(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(Status(code, reason, message))
}

// Status returns the object of that kind, as it is in answers and in ERROR events.
func Status(code int, reason, message string) []byte {
	data, _ := json.Marshal(map[string]any{"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{}, "status": "Failure",
		"message": message, "reason": reason, "code": code})
	return data
}

// Event returns one line of a watch.
func Event(kind string, object []byte) []byte {
	return fmt.Appendf(nil, `{"type":%q,"object":%s}`+"\n", kind, object)
}

// split returns the parts of a path: the group, the version, and what comes after.
func split(path string) (group, version string, rest []string, ok bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case parts[0] == "api" && len(parts) >= 2:
		return "", parts[1], parts[2:], true
	case parts[0] == "apis" && len(parts) == 2:
		return parts[1], "", nil, true
	case parts[0] == "apis" && len(parts) >= 3:
		return parts[1], parts[2], parts[3:], true
	}
	return "", "", nil, false
}

func (s *Server) serveGroup(w http.ResponseWriter, r *http.Request, group string) {
	s.mu.Lock()
	var versions []map[string]string
	for _, have := range s.served {
		v := map[string]string{"groupVersion": have.APIVersion(), "version": have.Version}
		if have.Group == group && !slices.ContainsFunc(versions, func(o map[string]string) bool { return o["version"] == have.Version }) {
			versions = append(versions, v)
		}
	}
	s.mu.Unlock()
	if len(versions) == 0 {
		http.NotFound(w, r)
		return
	}
	reply(w, map[string]any{"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": versions, "preferredVersion": versions[0]})
}

func (s *Server) serveVersion(w http.ResponseWriter, r *http.Request, group, version string) {
	s.mu.Lock()
	var resources []map[string]any
	name := ""
	for _, have := range s.served {
		if have.Group == group && have.Version == version {
			name = have.APIVersion()
			resources = append(resources, map[string]any{"name": have.Plural, "singularName": strings.ToLower(have.Kind), "namespaced": true, "kind": have.Kind,
				"verbs": []string{"get", "list", "watch"}})
		}
	}
	s.mu.Unlock()
	if len(resources) == 0 {
		http.NotFound(w, r)
		return
	}
	reply(w, map[string]any{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources})
}

func reply(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(value)
}

// request is one for objects.
type request struct {
	resource        kubernetes.Resource
	namespace, name string
	query           url.Values
	selects         selector
	kind            *kind
	ends, kindEnds  int
	bookmarks       int
}

func (s *Server) serveObjects(w http.ResponseWriter, r *http.Request, group, version string, rest []string) {
	q := &request{query: r.URL.Query()}
	if len(rest) >= 3 && rest[0] == "namespaces" {
		q.namespace, rest = rest[1], rest[2:]
	}
	plural := rest[0]
	if len(rest) > 1 {
		q.name = rest[1]
	}
	s.mu.Lock()
	denied := s.denied[denial{plural, ""}] || s.denied[denial{plural, q.namespace}]
	i := slices.IndexFunc(s.served, func(have kubernetes.Resource) bool {
		return have.Group == group && have.Version == version && have.Plural == plural
	})
	if i >= 0 {
		q.resource = s.served[i]
		q.kind = s.kinds[idOf(q.resource)]
		q.kindEnds = q.kind.ends
	}
	q.ends, q.bookmarks = s.ends, s.bookmarks
	s.mu.Unlock()
	switch {
	case denied:
		Fail(w, http.StatusForbidden, "Forbidden", fmt.Sprintf(`%s is forbidden: User "test" cannot list resource %q in API group %q`, plural, plural, group))
		return
	case q.kind == nil:
		http.NotFound(w, r)
		return
	}
	var err error
	if q.selects, err = selectorOf(q.query.Get("labelSelector"), q.query.Get("fieldSelector")); err != nil {
		Fail(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	switch {
	case r.Method == http.MethodPost:
		var fields map[string]any
		if err := json.NewDecoder(r.Body).Decode(&fields); err != nil {
			Fail(w, http.StatusBadRequest, "BadRequest", err.Error())
			return
		}
		data, _ := json.Marshal(fields)
		if metadata, _ := fields["metadata"].(map[string]any); metadata != nil && metadata["name"] == nil {
			s.mu.Lock()
			metadata["name"] = fmt.Sprint(metadata["generateName"], s.rv)
			s.mu.Unlock()
			data, _ = json.Marshal(fields)
		}
		s.Apply(string(data))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		w.Write(data)
	case r.Method != http.MethodGet:
		Fail(w, http.StatusMethodNotAllowed, "MethodNotAllowed", r.Method)
	case q.name != "":
		s.get(w, q)
	case q.query.Get("watch") != "":
		s.watch(w, r, q)
	default:
		s.list(w, q)
	}
}

func (s *Server) get(w http.ResponseWriter, q *request) {
	s.mu.Lock()
	o := q.kind.objects[kubernetes.Key{Namespace: q.namespace, Name: q.name}]
	s.mu.Unlock()
	if o == nil {
		Fail(w, http.StatusNotFound, "NotFound", fmt.Sprintf("%s %q not found", q.resource.Plural, q.name))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(q.text(o))
}

// text returns an object in the version that is asked for.
func (q *request) text(o *object) []byte {
	return append(fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,`, q.resource.Kind, q.resource.APIVersion()), o.tail...)
}

func (q *request) takes(o *object) bool {
	return o != nil && (q.namespace == "" || o.key.Namespace == q.namespace) && q.selects(o)
}

// objectsLocked returns the selected objects in the order of their names.
func (q *request) objectsLocked() []*object {
	var all []*object
	for _, o := range q.kind.objects {
		if q.takes(o) {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b *object) int {
		return cmp.Or(cmp.Compare(a.key.Namespace, b.key.Namespace), cmp.Compare(a.key.Name, b.key.Name))
	})
	return all
}

func (s *Server) list(w http.ResponseWriter, q *request) {
	s.mu.Lock()
	rv, from := s.rv, 0
	var all []*object
	if next := q.query.Get("continue"); next != "" {
		fmt.Sscanf(next, "%d.%d", &rv, &from)
		if all = s.snapshots[rv]; all == nil || rv < q.kind.floor {
			s.mu.Unlock()
			Fail(w, http.StatusGone, "Expired", "The provided continue parameter is too old")
			return
		}
	} else {
		all = q.objectsLocked()
	}
	to := len(all)
	next := ""
	if limit, _ := strconv.Atoi(q.query.Get("limit")); limit > 0 && from+limit < to && q.query.Get("resourceVersion") != "0" {
		to = from + limit
		next = fmt.Sprintf("%d.%d", rv, to)
		s.snapshots[rv] = all
	}
	s.mu.Unlock()
	var text bytes.Buffer
	fmt.Fprintf(&text, `{"kind":"%sList","apiVersion":%q,"metadata":{"resourceVersion":"%d"`, q.resource.Kind, q.resource.APIVersion(), rv)
	if next != "" {
		fmt.Fprintf(&text, `,"continue":%q,"remainingItemCount":%d`, next, len(all)-to)
	}
	text.WriteString(`},"items":[`)
	for i, o := range all[from:to] {
		if i > 0 {
			text.WriteByte(',')
		}
		if builtin(q.resource.Group) {
			text.WriteByte('{') // without kind and apiVersion
			text.Write(o.tail)
		} else {
			text.Write(q.text(o))
		}
	}
	text.WriteString("]}\n")
	w.Header().Set("Content-Type", "application/json")
	w.Write(text.Bytes())
}

func builtin(group string) bool {
	return !strings.Contains(group, ".") || strings.HasSuffix(group, ".k8s.io") && group != "gateway.networking.k8s.io"
}

// watch serves a watch until its time is over.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, q *request) {
	initial := q.query.Get("sendInitialEvents") == "true"
	bookmarks := q.query.Get("allowWatchBookmarks") == "true"
	if initial && s.NoWatchList {
		Fail(w, http.StatusUnprocessableEntity, "Invalid", "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
		return
	}
	var at uint64
	if text := q.query.Get("resourceVersion"); text != "" {
		var err error
		if at, err = strconv.ParseUint(text, 10, 64); err != nil {
			Fail(w, http.StatusInternalServerError, "InternalError", err.Error())
			return
		}
	}
	seconds, _ := strconv.Atoi(q.query.Get("timeoutSeconds"))
	out := &writer{w: w, torn: s.Torn}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out.flush()

	s.mu.Lock()
	s.watches++
	var begin [][]byte
	expired := at > 0 && at < q.kind.floor
	if at == 0 {
		for _, o := range q.objectsLocked() {
			begin = append(begin, Event("ADDED", q.text(o)))
		}
		if at = s.rv; initial && bookmarks && !s.IgnoreWatchList {
			begin = append(begin, q.bookmark(at, true))
		}
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.watches--
		s.mu.Unlock()
	}()
	if expired {
		out.write(Event("ERROR", Status(http.StatusGone, "Expired", fmt.Sprintf("too old resource version: %d (%d)", at, q.kind.floor))))
		return
	}
	for _, line := range begin {
		out.write(line)
	}
	end, last, tick := newTimer(seconds), newTimer(max(1, seconds-2)), time.NewTicker(time.Minute)
	defer end.Stop()
	defer last.Stop()
	defer tick.Stop()
	for {
		lines, more, next := s.since(q, &at, bookmarks)
		for _, line := range lines {
			out.write(line)
		}
		if !more {
			return
		}
		select {
		case <-next:
		case <-tick.C:
			if bookmarks {
				out.write(q.bookmark(at, false))
			}
		case <-last.C:
			if bookmarks {
				out.write(q.bookmark(at, false))
			}
		case <-end.C:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func newTimer(seconds int) *time.Timer {
	if seconds <= 0 {
		seconds = 1800
	}
	return time.NewTimer(time.Duration(seconds) * time.Second)
}

// since returns the events after a resource version, whether the watch goes on, and what is closed when there are more.
func (s *Server) since(q *request, at *uint64, bookmarks bool) (lines [][]byte, more bool, next <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, _ := slices.BinarySearchFunc(q.kind.history, *at+1, func(r record, rv uint64) int { return cmp.Compare(r.rv, rv) })
	for _, r := range q.kind.history[from:] {
		if line := q.event(r); line != nil {
			lines = append(lines, line)
		}
	}
	*at = max(*at, s.rv)
	if s.bookmarks != q.bookmarks {
		if q.bookmarks = s.bookmarks; bookmarks {
			lines = append(lines, q.bookmark(*at, false))
		}
	}
	return lines, s.ends == q.ends && q.kind.ends == q.kindEnds, s.changed
}

// event returns the line of a change, or nil if it is not selected.
func (q *request) event(r record) []byte {
	before, now := q.takes(r.before), q.takes(r.now)
	switch {
	case !before && now:
		return Event("ADDED", q.text(r.now))
	case before && now:
		return Event("MODIFIED", q.text(r.now))
	case before && r.now != nil:
		return Event("DELETED", q.text(r.before.at(r.rv))) // with the old labels
	case before:
		return Event("DELETED", q.text(r.before))
	}
	return nil
}

func (q *request) bookmark(at uint64, marker bool) []byte {
	annotations := ""
	if marker {
		annotations = `,"annotations":{"k8s.io/initial-events-end":"true"}`
	}
	return Event("BOOKMARK", fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":"%d","creationTimestamp":null%s},"spec":{},"status":{}}`,
		q.resource.Kind, q.resource.APIVersion(), at, annotations))
}

// writer writes the lines of a watch.
type writer struct {
	w    http.ResponseWriter
	torn bool
}

func (w *writer) write(line []byte) {
	if !w.torn {
		w.w.Write(line)
		w.flush()
		return
	}
	for piece := range slices.Chunk(line, 7) {
		w.w.Write(piece)
		w.flush()
	}
}

func (w *writer) flush() { http.NewResponseController(w.w).Flush() }
