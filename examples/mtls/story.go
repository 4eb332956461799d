package main

import (
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
)

// story prints the results in chapters, row by row.
type story struct {
	asked bool  // everything was as the documents specify, so far
	err   error // why it cannot continue

	chapters int
	rows     *tabwriter.Writer // of the chapter
}

// chapter begins a chapter about some documents, with the heading of its table.
func (s *story) chapter(title string, documents []string, heading ...string) {
	s.end()
	s.chapters++
	fmt.Printf("\n%d. %s (%s)\n\n", s.chapters, title, strings.Join(documents, ", "))
	s.rows = tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	var names, rules []any
	for _, name := range heading {
		names, rules = append(names, name), append(rules, strings.Repeat("-", len(name)))
	}
	s.row(names...)
	s.row(rules...)
}

// end prints the rows of the chapter.
func (s *story) end() {
	if s.rows != nil {
		s.rows.Flush()
	}
}

// row adds a row without an expectation.
func (s *story) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, cell := range cells {
		texts[i] = fmt.Sprint(cell)
	}
	fmt.Fprintf(s.rows, "   %s\n", strings.Join(texts, "\t"))
}

// measured adds a row with what is specified and what was measured. good says whether they match.
func (s *story) measured(good bool, cells ...any) {
	if !good {
		s.asked = false
		cells = append(cells, "DOES NOT MATCH")
	}
	s.row(cells...)
}

// call has a service send a request, and compares the result.
func (s *story) call(by *process, r Request, want string) {
	var measured string
	s.ask(by, "Send", r, &measured)
	s.measured(measured == want, by.name, r.Method+" "+r.URL, want, measured)
}

// ask calls a method of a service, unless there was an error before.
func (s *story) ask(p *process, method string, args, reply any) {
	if s.err == nil {
		s.err = p.ask(method, args, reply)
	}
}

// fail ends the story with an error, if err is one.
func (s *story) fail(err error) {
	if s.err == nil {
		s.err = err
	}
}
