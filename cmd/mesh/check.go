package main

import (
	"flag"
	"fmt"
	"io"
	"slices"

	brief "github.com/nosidecar/mesh/internal/findings"
	"github.com/nosidecar/mesh/policy"
	entries "github.com/nosidecar/mesh/policy/consul"
	"github.com/nosidecar/mesh/policy/telemetry/cel"
)

// report is what check prints as JSON.
type report struct {
	Documents int             `json:"documents"`
	Findings  policy.Findings `json:"findings"` // never null
}

// check reports what is wrong with documents. The code is valid if err is nil. Standard output has only the findings, so that a program
// can read them; the closing line, for people, goes to stderr.
func check(args []string, stdout, stderr io.Writer) (code int, err error) {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	format := flags.String("o", "text", "")
	var workload policy.Workload
	flags.StringVar(&workload.Service, "service", "", "")
	flags.StringVar(&workload.RootNamespace, "root-namespace", "", "")
	if err := parse(flags, args); err != nil {
		return 0, err
	}
	switch {
	case *format != "text" && *format != "json":
		return 0, usagef("-o is text or json, not %q", *format)
	case flags.NArg() == 0:
		return 0, usagef("name the files or folders to check")
	}
	sources, paths, err := read(flags.Args())
	if err != nil {
		return 0, err
	}
	checked := checkAll(sources, workload)
	findings := append(checked.Findings, idle(paths, checked, policy.Warning)...)

	switch {
	case *format == "json":
		if findings == nil {
			findings = policy.Findings{}
		}
		err = printJSON(stdout, report{Documents: checked.Documents, Findings: findings})
	case len(findings) > 0:
		err = printFindings(stdout, brief.Brief(findings))
	}
	if findings.Err() != nil {
		code = exitErrors
	}
	if err == nil && *format == "text" {
		errors, warnings := tally(findings)
		_, err = fmt.Fprintf(stderr, "%s checked: %s, %s\n", count(checked.Documents, "document"), count(errors, "error"),
			count(warnings, "warning"))
	}
	return code, err
}

// checkAll checks documents for a workload.
func checkAll(sources []policy.Source, w policy.Workload) policy.Report {
	w.Expressions, w.Filters = cel.Expressions{}, entries.Filters{}
	return policy.Check(sources, w)
}

// idle reports the paths without any document, which is an error, and those from which nothing can be in force.
func idle(paths []origin, checked policy.Report, skipped policy.Severity) (findings policy.Findings) {
	for _, path := range paths {
		used := checked.InForce[path.from:path.to]
		finding := policy.Finding{File: path.name, Line: 1, Severity: policy.Error, Message: nothing}
		switch {
		case path.empty:
		case slices.ContainsFunc(used, func(n int) bool { return n > 0 }) || checked.Findings.Err() != nil:
			continue
		default:
			finding.Severity, finding.Message = skipped, "no document in it has a meaning in-process, all are skipped: "+
				"correct the path, or add documents that have, since a mesh refuses a source without any"
		}
		findings = append(findings, finding)
	}
	return findings
}

// printFindings prints one finding per line. They contain text from documents, which must not control a terminal.
func printFindings(w io.Writer, findings policy.Findings) error {
	for _, f := range findings {
		if _, err := fmt.Fprintln(w, harmless(f.String())); err != nil {
			return err
		}
	}
	return nil
}

func tally(findings policy.Findings) (errors, warnings int) {
	for _, f := range findings {
		if f.Severity == policy.Error {
			errors++
		} else {
			warnings++
		}
	}
	return errors, warnings
}

// count returns a number of things in words: "no errors", "1 error", "2 errors".
func count(n int, thing string) string {
	switch n {
	case 0:
		return "no " + thing + "s"
	case 1:
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
