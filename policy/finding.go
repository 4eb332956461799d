package policy

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Severity says how bad a [Finding] is.
type Severity string

const (
	// Error is a mistake, or something this library does not enforce. The document does not take effect.
	Error Severity = "error"

	// Warning is something that is valid, but has no meaning in-process or is probably not meant.
	Warning Severity = "warning"
)

// Finding is an error or a warning about a document.
type Finding struct {
	// File is the [Source.Name] and Line, from 1, the place in it.
	File string `json:"file"`
	Line int    `json:"line"`

	// Kind, Namespace and Name identify the document. They are empty if it cannot be read that far.
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`

	// Field is the path of the field, as "spec.http[0].retries.perTryTimeout". It is empty if the finding is about the
	// document as a whole.
	Field string `json:"field"`

	Severity Severity `json:"severity"`

	// Message says what is wrong and what to do about it.
	Message string `json:"message"`
}

// String returns the finding as one line: "file:line: Kind namespace/name: field.path: severity: message". What is
// empty is left out.
func (f Finding) String() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File + ":" + strconv.Itoa(f.Line) + ": ")
	}
	if f.Kind != "" {
		b.WriteString(f.Kind + " " + f.Namespace + "/" + f.Name + ": ")
	}
	if f.Field != "" {
		b.WriteString(f.Field + ": ")
	}
	b.WriteString(string(f.Severity) + ": " + f.Message)
	return b.String()
}

// Findings are what was found in a set of documents, in their order. As an error they print one finding a line.
type Findings []Finding

// Error returns the findings, one a line.
func (f Findings) Error() string {
	lines := make([]string, len(f))
	for i := range f {
		lines[i] = f[i].String()
	}
	return strings.Join(lines, "\n")
}

// Err returns the findings that are errors as an error, a Findings, and nil if there are none.
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

// sort puts findings in the order of their files and lines. Files are given by their place among the sources.
func (f Findings) sort(files map[string]int) {
	slices.SortStableFunc(f, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(files[a.File], files[b.File]), cmp.Compare(a.Line, b.Line))
	})
}
