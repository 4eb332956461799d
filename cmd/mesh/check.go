package main

import (
	"flag"
	"fmt"
	"io"

	"github.com/nosidecar/mesh/policy"
)

// report is what check prints as JSON.
type report struct {
	Documents int             `json:"documents"`
	Findings  policy.Findings `json:"findings"` // never null
}

// check reports what is to say about documents. The code counts if there is no error.
func check(args []string, stdout io.Writer) (code int, err error) {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	format := flags.String("o", "text", "")
	if err := parse(flags, args); err != nil {
		return 0, err
	}
	switch {
	case *format != "text" && *format != "json":
		return 0, usagef("-o is text or json, not %q", *format)
	case flags.NArg() == 0:
		return 0, usagef("name the files or folders to check")
	}
	sources, err := read(flags.Args())
	if err != nil {
		return 0, err
	}
	checked := policy.Check(sources, policy.Workload{})
	findings := checked.Findings

	switch {
	case *format == "json":
		if findings == nil {
			findings = policy.Findings{}
		}
		err = printJSON(stdout, report{Documents: checked.Documents, Findings: findings})
	case len(findings) > 0:
		_, err = fmt.Fprintln(stdout, findings)
	}
	if findings.Err() != nil {
		code = exitErrors
	}
	return code, err
}
