package main

import (
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/nosidecar/mesh/policy"
	entries "github.com/nosidecar/mesh/policy/consul"
	"github.com/nosidecar/mesh/policy/telemetry/cel"
)

// requestFlags are the flags of the commands that answer about one request.
type requestFlags struct {
	*flag.FlagSet

	paths    []string
	workload policy.Workload
	method   string
	header   http.Header
}

func newRequestFlags(command string) *requestFlags {
	f := &requestFlags{
		FlagSet:  flag.NewFlagSet(command, flag.ContinueOnError),
		workload: policy.Workload{Labels: make(map[string]string), Expressions: cel.Expressions{}, Filters: entries.Filters{}},
		header:   make(http.Header),
	}
	f.Func("f", "", func(path string) error {
		f.paths = append(f.paths, path)
		return nil
	})
	f.StringVar(&f.workload.Namespace, "n", "default", "")
	f.StringVar(&f.workload.RootNamespace, "root-namespace", "", "")
	f.StringVar(&f.workload.Service, "service", "", "")
	f.Func("l", "", func(list string) error { return addLabels(f.workload.Labels, list) })
	f.StringVar(&f.method, "X", http.MethodGet, "")
	f.Func("H", "", func(line string) error { return addHeader(f.header, line) })
	return f
}

// parse returns the URL, which is the only argument.
func (f *requestFlags) parse(args []string) (target string, err error) {
	if err := parse(f.FlagSet, args); err != nil {
		return "", err
	}
	switch {
	case len(f.paths) == 0:
		return "", usagef("name the documents with -f")
	case f.NArg() == 0:
		return "", usagef("name the URL of the request")
	case f.NArg() > 1:
		return "", usagef("there is more than one URL in %q: flags come before it", f.Args())
	}
	return f.Arg(0), nil
}

// plan compiles the documents for the workload.
func (f *requestFlags) plan() (*policy.Plan, error) {
	sources, paths, err := read(f.paths)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		if path.empty {
			return nil, fmt.Errorf("%s: %s", path.name, nothing)
		}
	}
	plan, findings := policy.Compile(sources, f.workload)
	if err := findings.Err(); err != nil {
		return nil, fmt.Errorf("the documents are not valid:\n%w", err)
	}
	return plan, nil
}

// addLabels adds the labels of a list "key=value,key=value".
func addLabels(labels map[string]string, list string) error {
	for item := range strings.SplitSeq(list, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(item), "=")
		if !ok || key == "" {
			return fmt.Errorf("%q is not KEY=VALUE", item)
		}
		if has, twice := labels[key]; twice && has != value {
			return fmt.Errorf("%s is given twice, as %q and as %q", key, has, value)
		}
		labels[key] = value
	}
	return nil
}

// addHeader adds the header of a line "Name: value".
func addHeader(header http.Header, line string) error {
	name, value, ok := strings.Cut(line, ":")
	if !ok || name == "" || strings.ContainsFunc(name, notInName) {
		return errors.New("it is not NAME: VALUE")
	}
	value = strings.TrimSpace(value)
	if strings.ContainsFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
		return errors.New("the value has a control character")
	}
	header.Add(name, value)
	return nil
}

// notInName reports whether c cannot be in the name of a header (RFC 9110, section 5.6.2).
func notInName(c rune) bool {
	return c <= ' ' || c >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
}

// takeHost removes Host from the header and returns it, or host if there is none.
func takeHost(header http.Header, host string) (string, error) {
	hosts := header["Host"]
	if hosts == nil {
		return host, nil
	}
	header.Del("Host")
	host = hosts[len(hosts)-1]
	if u, err := url.Parse("http://" + host); err != nil || u.Host != host || host == "" {
		return "", fmt.Errorf("the Host %q is not an authority", host)
	}
	return host, nil
}
