// Command mesh says offline, from documents alone, what the library would do, and publishes documents:
//
//	mesh check   finds mistakes in documents
//	mesh route   says what an outbound request gets
//	mesh authz   says whether an inbound request is allowed
//	mesh push    publishes documents in Consul
//	mesh pull    reads them back
//	mesh diff    says what a push would change
//	mesh certs   makes certificates for development
//	mesh version says what was built
//
// The loader, the compiler, the router and the authorizer are those of the library. "mesh help" describes the flags.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy"
	entries "github.com/nosidecar/mesh/policy/consul"
)

// The exit codes.
const (
	exitOK     = 0
	exitErrors = 1 // of check, push and diff: a document has an error
	exitFailed = 2 // no answer: wrong usage, a file that cannot be read, or an error in documents for route and authz
	exitDenied = 3 // of authz: the request is not allowed

	exitDiffers = 4 // of diff: a push would change something
)

const usage = `Usage:

  mesh check [-o text|json] [--service NAME] [--root-namespace NAMESPACE] PATH...
        Report what is wrong with documents. PATH is a file, or a folder of .yaml, .yml, .json and .hcl files. Flags come before it.
        A PATH without any document is an error; a PATH whose documents are all skipped is a warning.
        Config entries of Consul are .json or .hcl files with one entry each. Programs read them with package policy/consul.
        For the output of another program, PATH is /dev/stdin, as in: helm template shop | mesh check /dev/stdin
        Of more than three documents of one kind that are skipped, a line names the first and counts the others; -o json has them all.
        The last line, on standard error, counts the documents and the findings.
        Exit status: 0 if all documents are valid and enforceable (warnings are allowed), 1 if any has an error.

  mesh route -f PATH [flags] URL
        Print, as JSON, what an outbound request to URL gets.
        -f PATH             a file or folder of documents; may be repeated
        -n NAMESPACE        the caller's namespace (default "default")
        --root-namespace N  the namespace whose documents apply to the whole mesh (default "istio-system")
        -l KEY=VALUE,...    the caller's labels; may be repeated
        --service NAME      the Consul service that the caller is an instance of (default: none)
        -X METHOD           the request's method (default GET)
        -H 'NAME: VALUE'    a request header; may be repeated; Host replaces the authority
        Flags come before the URL.

  mesh authz -f PATH [flags] URL
        Print, as JSON, whether an inbound request to the workload is allowed, and why. The part of the URL after the authority
        is the request target, exactly as given. Exit status: 0 if the request is allowed, 3 if it is denied.
        -f PATH             a file or folder of documents; may be repeated
        -n NAMESPACE        the workload's namespace (default "default")
        --root-namespace N  the namespace whose documents apply to the whole mesh (default "istio-system")
        -l KEY=VALUE,...    the workload's labels; may be repeated
        --principal P       the peer's identity, such as cluster.local/ns/default/sa/name, or DOMAIN/ns/default/dc/DC/svc/NAME for
                            Consul Connect, whose DOMAIN is the workload's too; without it, the connection is plaintext
        --service NAME      the Consul service that the workload is an instance of (default: the URL's host up to the first dot)
        --service-account N the workload's service account, for TrafficTargets of SMI (default: it is not known, so any may be about it)
        --allow-by-default  allow a peer about which no service-intentions decides, as Consul's servers may be configured to do
        --source-ip IP      the peer's address (default 127.0.0.1)
        --port N            the workload's port (default that of the URL)
        --trusted-hops N    how many proxies in front are trusted to set x-forwarded-for (default 0)
        --jwks URI=FILE     the key set that RequestAuthentications would fetch from URI; may be repeated; nothing is fetched
        --time TIME         the time at which tokens are verified, such as 2026-01-31T12:00:00Z (default now)
        -X METHOD           the request's method (default GET)
        -H 'NAME: VALUE'    a request header; may be repeated; Host replaces the authority
        Flags come before the URL.

  mesh push -prefix PREFIX PATH...
        Publish documents in Consul's KV store, for policy/consulkv. They replace the documents that are published there. Processes
        get the new set as a whole, whatever its size. Files are named relative to PATH; HCL is published as JSON, as NAME.hcl.json.
        Nothing is published if mesh check would report an error, or if the documents of a PATH are all skipped. All findings go to
        standard error. If two pushes run at once, one fails and says so. Publishing the same documents again changes nothing.
        -prefix PREFIX      where they are in the KV store, such as mesh/shop
        The environment names the agent: CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE, CONSUL_HTTP_SSL,
        CONSUL_CACERT, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY, CONSUL_TLS_SERVER_NAME, CONSUL_NAMESPACE.
        Exit status: 0 if they are published, or were before, 1 if any has an error.

  mesh pull -prefix PREFIX FOLDER
        Write the published documents to FOLDER, which must be empty or not exist yet. The agent is found as for push.

  mesh diff -prefix PREFIX [-o text|json] PATH...
        Say what a push would change: files that are added, changed and removed. The agent is found as for push.
        Exit status: 0 if nothing would change, 4 if something would, 1 if any document has an error, so that push would fail.

  mesh certs [-o FOLDER] [-d DOMAIN] [-t TIME] NAMESPACE/ACCOUNT...
        Make certificates for workloads on a developer's machine: FOLDER/NAMESPACE/ACCOUNT holds tls.crt, tls.key and ca.crt,
        for tlsid.Files. Certificates of one call trust each other and nobody else: the key of their authority is not kept.
        -o FOLDER           where they are written (default "certs")
        -d DOMAIN           the trust domain (default "cluster.local")
        -t TIME             how long they are valid, at most 24h (default 24h)

  mesh version
        Print the version of the module and of Go.

The exit status is 2 on wrong usage, if a file cannot be read or written, if a request to Consul fails and, except for check, push
and diff, if the documents are not valid.
`

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run runs the command with the given arguments, and returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprintf(stderr, "mesh: name a command: check, route, authz, push, pull, diff, certs or version\n%s", seeHelp)
		return exitFailed
	}
	name, args := args[0], args[1:]
	var code int
	var err error
	switch name {
	case "check":
		code, err = check(args, stdout, stderr)
	case "route":
		err = route(args, stdout)
	case "authz":
		code, err = authz(args, stdout)
	case "push":
		code, err = push(args, stdout, stderr)
	case "pull":
		err = pull(args, stdout)
	case "diff":
		code, err = diff(args, stdout, stderr)
	case "certs":
		err = certs(args, stdout)
	case "version":
		err = version(args, stdout)
	case "help", "-h", "-help", "--help":
		if len(args) > 0 && usageOf(args[0]) == usage {
			return unknown(args[0], stderr)
		} else if len(args) > 0 {
			name = args[0]
		}
		err = flag.ErrHelp
	default:
		return unknown(name, stderr)
	}

	var wrong *usageError
	switch {
	case err == nil:
		return code
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usageOf(name))
		return exitOK
	case errors.As(err, &wrong):
		fmt.Fprintf(stderr, "%s\n%s", harmlessLines(fmt.Sprintf("mesh %s: %v", name, err)), seeHelp)
	default:
		fmt.Fprintln(stderr, harmlessLines(fmt.Sprintf("mesh %s: %v", name, err)))
	}
	return exitFailed
}

const seeHelp = "Run \"mesh help\" for the commands and their flags, or \"mesh help COMMAND\" for one.\n"

// unknown reports that there is no such command, and returns the exit status.
func unknown(name string, stderr io.Writer) int {
	fmt.Fprintf(stderr, "mesh: unknown command %q\n%s", name, seeHelp)
	return exitFailed
}

// usageOf returns the usage of a command, or all of it if there is no such command.
func usageOf(name string) string {
	blocks := strings.Split(strings.TrimPrefix(usage, "Usage:\n\n"), "\n\n")
	for _, block := range blocks {
		if strings.HasPrefix(block, "  mesh "+name+" ") || strings.HasPrefix(block, "  mesh "+name+"\n") {
			return "Usage:\n\n" + block + "\n\n" + blocks[len(blocks)-1] // the last one is about the exit status
		}
	}
	return usage
}

// usageError is a mistake in the arguments. run prints it with a hint to the help.
type usageError struct {
	error
}

func (e *usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// parse parses flags. Its error is flag.ErrHelp or a *usageError.
func parse(flags *flag.FlagSet, args []string) error {
	flags.SetOutput(io.Discard) // run prints the error
	err := flags.Parse(args)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		return &usageError{err}
	}
	rest := flags.Args()
	ended := len(rest) < len(args) && args[len(args)-len(rest)-1] == "--"
	for i, arg := range rest {
		if i > 0 && len(arg) > 1 && arg[0] == '-' && !ended {
			return usagef("flags come before other arguments, but %q is after %q", arg, rest[0])
		}
	}
	return err
}

// version prints what was built, as the Go tool recorded it.
func version(args []string, stdout io.Writer) error {
	if len(args) > 0 {
		return usagef("it takes no arguments")
	}
	module := "(unknown version)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		module = info.Main.Version
	}
	_, err := fmt.Fprintf(stdout, "mesh %s %s %s/%s\n", module, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// origin is one of the paths that are read.
type origin struct {
	name     string
	from, to int  // its sources are sources[from:to]
	empty    bool // it has no documents
}

// read reads the documents of all paths.
func read(names []string) (sources []policy.Source, paths []origin, err error) {
	known := make(map[string]bool)
	for _, name := range names {
		more, err := entries.ReadDir(name)
		if err != nil {
			return nil, nil, err
		}
		for _, source := range more {
			file := filepath.Clean(source.Name)
			if known[file] {
				return nil, nil, usagef("%s is in two of the paths: name it once", file)
			}
			known[file] = true
		}
		path := origin{name: name, from: len(sources), empty: holdsNothing(more)}
		sources = append(sources, more...)
		path.to = len(sources)
		paths = append(paths, path)
	}
	return sources, paths, nil
}

func holdsNothing(sources []policy.Source) bool {
	return !slices.ContainsFunc(sources, func(s policy.Source) bool { return !yamldoc.Empty(s.Data) })
}

const nothing = "there is no document in it: correct the path, or put documents there, in files named .yaml, .yml, .json or .hcl"

// printJSON prints v indented, and does not escape & and <.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
