package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	kube "github.com/nosidecar/mesh/internal/kubernetes"
)

// unread is the error about documents that cannot be read.
type unread struct {
	names     []string
	errs      []error
	since     time.Time
	temporary bool
	kept      bool // the documents that were read before stay in force
}

// add records a failure, if it is one. known reports whether the objects are known in spite of it.
func (e *unread) add(f *failure, known bool) {
	if f.err == nil {
		return
	}
	e.temporary = e.temporary && (known || !f.final())
	if e.since.IsZero() || f.since.Before(e.since) {
		e.since = f.since
	}
}

// Error names what cannot be read, by cause.
func (e *unread) Error() string {
	byCause := make(map[string][]string)
	var causes []string
	for i, err := range e.errs {
		cause := causeOf(err)
		if byCause[cause] == nil {
			causes = append(causes, cause)
		}
		byCause[cause] = append(byCause[cause], e.names[i])
	}
	var b strings.Builder
	b.WriteString("kubernetes: cannot read ")
	for i, cause := range causes {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(several(byCause[cause]) + ": " + cause)
	}
	if !e.temporary {
		b.WriteString("; what protects somebody must be readable: see the rights in docs/kubernetes.md")
	} else if e.kept {
		b.WriteString("; what was read until " + e.since.UTC().Format(time.RFC3339) + " stays in force")
	}
	return b.String()
}

// causeOf returns the reason why something cannot be read, without its name.
func causeOf(err error) string {
	var e *kube.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	if e.Err == nil {
		return fmt.Sprintf("%d %s", e.Code, cmp.Or(e.Reason, e.Message))
	}
	return e.Err.Error()
}

// several names the first of many.
func several(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:most], ", ") + " and " + plural(len(names)-most)
}

// Unwrap returns the causes.
func (e *unread) Unwrap() []error { return e.errs }

// Temporary reports whether waiting may help. It does not help if this process may not read a kind that protects somebody.
func (e *unread) Temporary() bool { return e.temporary }
