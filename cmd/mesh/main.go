// Command mesh answers offline, from documents alone, what the library would do:
//
//	mesh check   finds mistakes in documents
//	mesh route   says what an outbound request gets
//
// The loader, the compiler and the router are those of the library. "mesh help" describes the flags.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/nosidecar/mesh/policy"
)

// The exit codes.
const (
	exitOK     = 0
	exitErrors = 1 // of check: a document has an error
	exitFailed = 2 // no answer: wrong usage, a file that cannot be read, for route also invalid documents
)

const usage = `Usage:

  mesh check [-o text|json] PATH...
        Report what is wrong with documents. PATH is a file, or a folder of .yaml and .yml files.
        Exit status: 0 if all documents are valid and enforceable (warnings are allowed), 1 if any has an error.

  mesh route -f PATH [flags] URL
        Print, as JSON, what an outbound request to URL gets.
        -f PATH             a file or folder of documents; may be repeated
        -n NAMESPACE        the caller's namespace (default "default")
        -l KEY=VALUE,...    the caller's labels; may be repeated
        -X METHOD           the request's method (default GET)
        -H 'NAME: VALUE'    a request header; may be repeated; Host replaces the authority
        Flags come before the URL.

The exit status is 2 on wrong usage, if a file cannot be read and, except for check, if the documents are not valid.
`

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the command with its arguments, less its name. It returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return exitFailed
	}
	name, args := args[0], args[1:]
	var code int
	var err error
	switch name {
	case "check":
		code, err = check(args, stdout)
	case "route":
		err = route(args, stdout)
	case "authz":
		fmt.Fprintln(stderr, "authz is not available yet")
		return exitFailed
	case "help", "-h", "-help", "--help":
		err = flag.ErrHelp
	default:
		fmt.Fprintf(stderr, "mesh: unknown command %q\n\n%s", name, usage)
		return exitFailed
	}

	var wrong *usageError
	switch {
	case err == nil:
		return code
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return exitOK
	case errors.As(err, &wrong):
		fmt.Fprintf(stderr, "mesh %s: %v\n\n%s", name, err, usage)
	default:
		fmt.Fprintf(stderr, "mesh %s: %v\n", name, err)
	}
	return exitFailed
}

// usageError is a mistake in the arguments: it is followed by the usage.
type usageError struct {
	error
}

func (e *usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// parse parses flags. Its error is flag.ErrHelp or a *usageError.
func parse(flags *flag.FlagSet, args []string) error {
	flags.SetOutput(io.Discard) // run prints the error and the usage
	err := flags.Parse(args)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		return &usageError{err}
	}
	return err
}

// read reads the documents of all paths.
func read(paths []string) ([]policy.Source, error) {
	var sources []policy.Source
	for _, path := range paths {
		more, err := policy.ReadDir(path)
		if err != nil {
			return nil, err
		}
		sources = append(sources, more...)
	}
	return sources, nil
}

// printJSON prints v as people and programs can read it: indented, with & and < as they are.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
