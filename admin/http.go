package admin

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"
)

//go:embed page.html page.css page.js icon.svg
var files embed.FS

// assets are the files that the page loads, by name.
var assets = func() map[string]asset {
	all := make(map[string]asset)
	for name, kind := range map[string]string{"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"} {
		data, err := files.ReadFile(name)
		if err != nil {
			panic(err) // cannot happen: the file is embedded
		}
		sum := fnv.New64a()
		sum.Write(data)
		all[name] = asset{data, kind + "; charset=utf-8", strconv.FormatUint(sum.Sum64(), 36)}
	}
	return all
}()

type asset struct {
	data    []byte
	kind    string
	version string
}

var page = template.Must(template.New("page.html").Funcs(functions).ParseFS(files, "page.html"))

// contentPolicy allows the page to load only its own files.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// ServeHTTP implements http.Handler. It answers GET and HEAD requests, at any path; see the package documentation.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Content-Security-Policy", contentPolicy)
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "admin: the page is read-only", http.StatusMethodNotAllowed)
		return
	}
	if err := p.admits(r.Host); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	// Other sites, and other ports of this host, may link to the page, but their scripts may not load it.
	if from := r.Header.Get("Sec-Fetch-Site"); (from == "cross-site" || from == "same-site") && r.Header.Get("Sec-Fetch-Mode") != "navigate" {
		http.Error(w, "admin: another site may not read the page", http.StatusForbidden)
		return
	}
	query := r.URL.Query()
	if name := query.Get("asset"); name != "" {
		serveAsset(w, r, name)
		return
	}
	if query.Has("events") {
		p.watch.serve(w, r)
		return
	}
	format, err := formatOf(query.Get("format"), r.Header["Accept"])
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.serve(w, r, format)
}

// An answer stays in memory until its client has read it, so there are not many at a time. Further requests wait for a place.
const (
	mostAnswers = 16
	readWithin  = 30 * time.Second
	placeWithin = 10 * time.Second
)

func (p *Page) serve(w http.ResponseWriter, r *http.Request, format string) {
	limit := time.NewTimer(placeWithin)
	defer limit.Stop()
	select {
	case p.answering <- struct{}{}:
		defer func() { <-p.answering }()
	case <-r.Context().Done():
		return
	case <-limit.C:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "admin: too many clients have not yet read their answers", http.StatusServiceUnavailable)
		return
	}
	body, kind, err := p.render(format)
	switch {
	case errors.Is(err, errNoMesh):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	case err != nil:
		http.Error(w, "admin: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(readWithin))
	_, _ = w.Write(body) // a client that has gone needs no response
}

// render returns a report in a format, and the Content-Type of that.
func (p *Page) render(format string) (body []byte, kind string, err error) {
	p.rendering.Lock()
	defer p.rendering.Unlock()
	report, err := p.report()
	if err != nil {
		return nil, "", err
	}
	var out bytes.Buffer
	switch format {
	case "json":
		encoder := json.NewEncoder(&out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
		return out.Bytes(), "application/json", err
	case "html":
		err = page.Execute(&out, newView(report))
		return out.Bytes(), "text/html; charset=utf-8", err
	}
	writeText(&out, report)
	return out.Bytes(), "text/plain; charset=utf-8", nil
}

// formatOf returns html, json or text: the format in the query, or otherwise the one that the client accepts. Browsers name HTML in
// their Accept header.
func formatOf(asked string, accept []string) (string, error) {
	switch asked {
	case "html", "json", "text":
		return asked, nil
	case "":
	default:
		return "", fmt.Errorf("admin: there is no format %q: ask for html, json or text", asked)
	}
	list := strings.Join(accept, ",")
	switch {
	case strings.Contains(list, "text/html"):
		return "html", nil
	case strings.Contains(list, "application/json"):
		return "json", nil
	}
	return "text", nil
}

func serveAsset(w http.ResponseWriter, r *http.Request, name string) {
	a, ok := assets[name]
	if !ok {
		http.Error(w, "admin: there is no such file", http.StatusNotFound)
		return
	}
	if r.URL.Query().Get("v") == a.version {
		w.Header().Set("Cache-Control", "private, max-age=86400, immutable")
	}
	w.Header().Set("Content-Type", a.kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(a.data)))
	_, _ = w.Write(a.data)
}
