package kubernetes

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// maxLine bounds one event, or one item of a list. By default a server stores no object of more than 1.5 MiB.
var maxLine = 8 << 20 // changed by tests alone

// lines reads the lines of a response.
type lines struct {
	r    *bufio.Reader
	long []byte // holds a line that is longer than the buffer of r
}

func newLines(r io.Reader) *lines { return &lines{r: bufio.NewReaderSize(r, 64<<10)} }

// next returns the next line that is not empty. It is valid until the next call. A last line without a newline is cut off and ignored.
func (l *lines) next() ([]byte, error) {
	for {
		line, err := l.r.ReadSlice('\n')
		l.long = l.long[:0]
		for err == bufio.ErrBufferFull {
			if l.long = append(l.long, line...); len(l.long) > maxLine {
				return nil, fmt.Errorf("%w: an event of more than %d MiB", errTooLarge, maxLine>>20)
			}
			line, err = l.r.ReadSlice('\n')
		}
		if len(l.long) > 0 {
			l.long = append(l.long, line...)
			line = l.long
		}
		line = bytes.TrimSpace(line)
		switch {
		case err == io.EOF && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case len(line) > 0:
			return line, nil
		}
	}
}

// version identifies one state of one object.
type version struct {
	uid, resource string
	number        uint64 // resource as a number; 0 if it is not one
}

func newVersion(uid, resource string) version {
	n, _ := strconv.ParseUint(resource, 10, 64)
	return version{uid, resource, n}
}

// before reports whether v is known to be older than w.
func (v version) before(w version) bool { return v.number != 0 && w.number != 0 && v.number < w.number }

// event is one event of a watch.
type event struct {
	change
	bookmark string // the resource version of a bookmark; empty for others
	marker   bool   // it ends the initial events
}

// change is a change of an object.
type change struct {
	object  Object
	version version
	deleted bool
}

const maxName = 253 // bytes

const markerAnnotation = "k8s.io/initial-events-end"

// decodeEvent decodes one line of a watch. It returns an ERROR event as an *Error. The object of the event shares memory with the line.
func decodeEvent(line []byte, what string, r Resource, namespace string) (event, error) {
	var h head
	s := Skim(line)
	kind, object, ok := s.event(&h)
	if !ok {
		return event{}, fmt.Errorf("%w: an event that is not JSON, at byte %d: %s", errNonsense, s.at, clean(string(line[:min(len(line), 80)])))
	}
	switch kind {
	case "ERROR":
		var s status
		if err := json.Unmarshal(object, &s); err != nil || s.Kind != "Status" {
			return event{}, fmt.Errorf("%w: an ERROR without Status", errNonsense)
		}
		return event{}, s.error(what)
	case "BOOKMARK":
		if h.resourceVersion == "" || len(h.resourceVersion) > maxName {
			return event{}, fmt.Errorf("%w: a BOOKMARK without resourceVersion", errNonsense)
		}
		return event{bookmark: h.resourceVersion, marker: h.mark == "true"}, nil
	case "ADDED", "MODIFIED", "DELETED":
		c, err := h.change(object, r, namespace)
		c.deleted = kind == "DELETED"
		return event{change: c}, err
	}
	return event{}, fmt.Errorf("%w: an event of type %q", errNonsense, clean(kind))
}

// change returns the change to an object. Items of lists may have no kind.
func (h *head) change(raw []byte, r Resource, namespace string) (change, error) {
	switch {
	case h.kind != "" && h.kind != r.Kind:
		return change{}, fmt.Errorf("%w: a %q among %s", errNonsense, clean(h.kind), r)
	case h.apiVersion != "" && h.apiVersion != r.APIVersion():
		return change{}, fmt.Errorf("%w: an object of apiVersion %q among %s", errNonsense, clean(h.apiVersion), r)
	case h.name == "" || h.uid == "" || h.resourceVersion == "":
		return change{}, fmt.Errorf("%w: an object without name, uid or resourceVersion", errNonsense)
	case max(len(h.name), len(h.namespace), len(h.uid), len(h.resourceVersion)) > maxName:
		return change{}, fmt.Errorf("%w: an object with a name, uid or resourceVersion of more than %d bytes", errNonsense, maxName)
	case namespace != "" && h.namespace != namespace:
		return change{}, fmt.Errorf("%w: an object of namespace %q", errNonsense, clean(h.namespace))
	}
	o := Object{Key: Key{h.namespace, h.name}, UID: h.uid, ResourceVersion: h.resourceVersion, Raw: raw}
	return change{object: o, version: newVersion(o.UID, o.ResourceVersion)}, nil
}

// decodeList decodes one page of a list and calls add with each object. Only when it returns is it known whether the page is valid. A page
// without items is not valid: everything that was read before would be gone.
func decodeList(body io.Reader, r Resource, namespace string, add func(change) error) (resourceVersion, next string, err error) {
	left := &budget{r: body}
	d := json.NewDecoder(left)
	var head struct {
		kind, apiVersion string
		items            bool // were there
		metadata         struct {
			ResourceVersion string `json:"resourceVersion"`
			Continue        string `json:"continue"`
		}
	}
	if t, err := d.Token(); err != nil {
		return "", "", nonsense(err)
	} else if t != json.Delim('{') {
		return "", "", nonsense(errors.New("it is not an object"))
	}
	for d.More() {
		left.renew()
		field, err := d.Token()
		if err != nil {
			return "", "", nonsense(err)
		}
		switch field {
		case "kind":
			err = d.Decode(&head.kind)
		case "apiVersion":
			err = d.Decode(&head.apiVersion)
		case "metadata":
			err = d.Decode(&head.metadata)
		case "items":
			if head.items {
				return "", "", nonsense(errors.New("items is there twice"))
			}
			head.items = true
			err = decodeItems(d, left, r, namespace, add)
		default:
			var ignored json.RawMessage
			err = d.Decode(&ignored)
		}
		if err != nil {
			return "", "", nonsense(err)
		}
	}
	if _, err := d.Token(); err != nil {
		return "", "", nonsense(err)
	}
	switch {
	case head.kind != r.Kind+"List":
		return "", "", fmt.Errorf("%w: a %q instead of a %sList", errNonsense, clean(head.kind), r.Kind)
	case head.apiVersion != r.APIVersion():
		return "", "", fmt.Errorf("%w: a list of apiVersion %q instead of %s", errNonsense, clean(head.apiVersion), r.APIVersion())
	case !head.items:
		return "", "", fmt.Errorf("%w: a list without items", errNonsense)
	case head.metadata.ResourceVersion == "" || len(head.metadata.ResourceVersion) > maxName:
		return "", "", fmt.Errorf("%w: a list without resourceVersion", errNonsense)
	}
	return head.metadata.ResourceVersion, head.metadata.Continue, nil
}

// nonsense is the error of a list that cannot be read because of err.
func nonsense(err error) error {
	if errors.Is(err, errTooLarge) {
		return err
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", errNonsense, err)
}

// decodeItems reads the array of objects of a list, or null.
func decodeItems(d *json.Decoder, left *budget, r Resource, namespace string, add func(change) error) error {
	switch t, err := d.Token(); {
	case err != nil:
		return err
	case t == nil:
		return nil
	case t != json.Delim('['):
		return errors.New("items is not an array")
	}
	for d.More() {
		left.renew()
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return err
		}
		var h head
		if s := Skim(raw); !s.object(&h) {
			return errors.New("an item that is not an object")
		}
		c, err := h.change(raw, r, namespace)
		if err != nil {
			return err
		}
		if err := add(c); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// budget bounds the bytes that are read for one object.
type budget struct {
	r    io.Reader
	used int
}

func (b *budget) renew() { b.used = 0 }

// Read implements io.Reader.
func (b *budget) Read(p []byte) (int, error) {
	if b.used > maxLine {
		return 0, fmt.Errorf("%w: an object of more than %d MiB", errTooLarge, maxLine>>20)
	}
	n, err := b.r.Read(p)
	b.used += n
	return n, err
}
