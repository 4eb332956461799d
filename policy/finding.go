package policy

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Severity is the severity of a [Finding].
type Severity string

const (
	// Error is a mistake, or something this library does not enforce. The document does not take effect.
	Error Severity = "error"

	// Warning is something valid that has no meaning in-process, or is probably a mistake.
	Warning Severity = "warning"
)

// Finding is an error or a warning about a document.
type Finding struct {
	// File is the [Source.Name]. Line is the line in it, counted from 1.
	File string `json:"file"`
	Line int    `json:"line"`

	// Kind, Namespace and Name identify the document. They are empty if they could not be read.
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`

	// Field is the path of the field, such as "spec.http[0].retries.perTryTimeout". It is empty if the finding is about the whole
	// document.
	Field string `json:"field"`

	Severity Severity `json:"severity"`

	// Message says what is wrong and what to do about it.
	Message string `json:"message"`

	// InForce says what is in force in place of a document that stands alone ([Source.Alone]) and is refused: "last good" is its last
	// good version, "nothing" means that it is left out, "its ports" that only the annotations of a Service are left out, and "denial"
	// that what it may protect is closed: all requests to this workload are denied, or all calls to the hosts that it secures fail. It is
	// empty for other findings.
	InForce string `json:"inForce,omitempty"`

	// Since is when such a document was first refused, if it has been refused ever since.
	Since time.Time `json:"since,omitzero"`
}

// String returns the finding in one line: "file:line: Kind namespace/name: field.path: severity: message (in force: last good)". Empty parts
// are omitted.
func (f Finding) String() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File + ":" + strconv.Itoa(f.Line) + ": ")
	}
	if f.Kind != "" {
		b.WriteString(f.Kind)
		if f.Name != "" { // a namespace alone is the one that the document would be in
			b.WriteString(" " + f.Namespace + "/" + f.Name)
		}
		b.WriteString(": ")
	}
	if f.Field != "" {
		b.WriteString(f.Field + ": ")
	}
	b.WriteString(string(f.Severity) + ": " + f.Message)
	if f.InForce != "" {
		b.WriteString(" (in force: " + f.InForce + ")")
	}
	return b.String()
}

// Findings are the findings in a set of documents, in the order of the documents. It is an error whose text has one finding per line.
type Findings []Finding

// Error returns the findings, one per line.
func (f Findings) Error() string {
	lines := make([]string, len(f))
	for i := range f {
		lines[i] = f[i].String()
	}
	return strings.Join(lines, "\n")
}

// Err returns the findings with severity [Error] as a Findings, or nil if there are none.
func (f Findings) Err() error {
	var errs Findings
	for _, finding := range f {
		if finding.Severity == Error {
			errs = append(errs, finding)
		}
	}
	if errs == nil {
		return nil
	}
	return errs
}

// sort sorts findings by file and line. files has the position of each file among the sources.
func (f Findings) sort(files map[string]int) {
	slices.SortStableFunc(f, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(files[a.File], files[b.File]), cmp.Compare(a.Line, b.Line))
	})
}
