package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/consulkv"
)

// push publishes documents in Consul if check finds no error in them. The code is valid if err is nil.
func push(args []string, stdout, stderr io.Writer) (code int, err error) {
	flags, prefix := storeFlags("push")
	if err := parse(flags, args); err != nil {
		return 0, err
	}
	store, err := openStore(*prefix)
	if err != nil {
		return 0, err
	}
	files, err := checked(flags.Args(), stderr)
	if err != nil || files == nil {
		return exitErrors, err
	}
	changed, err := store.Push(context.Background(), files)
	switch {
	case changed:
		_, printed := fmt.Fprintf(stdout, "%s: %s published\n", store, count(len(files), "file"))
		return 0, errors.Join(err, printed)
	case err != nil:
		return 0, err
	}
	_, err = fmt.Fprintf(stdout, "%s: no change\n", store)
	return 0, err
}

// pull writes the published documents to a folder that is empty or does not exist yet.
func pull(args []string, stdout io.Writer) error {
	flags, prefix := storeFlags("pull")
	if err := parse(flags, args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return usagef("name one folder to write to")
	}
	store, err := openStore(*prefix)
	if err != nil {
		return err
	}
	files, err := store.Pull(context.Background())
	if err != nil {
		return err
	}
	if err := writeAll(flags.Arg(0), files); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s: %s written to %s\n", store, count(len(files), "file"), flags.Arg(0))
	return err
}

// writeAll writes files to an empty folder, and never outside of it, whatever their names are.
func writeAll(dir string, files []policy.Source) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err != nil {
		return err
	} else if len(entries) > 0 {
		return fmt.Errorf("%s is not empty: name a folder that is, or that is not there yet", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range files {
		if err := writeNew(root, f); err != nil {
			return fmt.Errorf("%s is not complete: %w", dir, err)
		}
	}
	return nil
}

func writeNew(root *os.Root, source policy.Source) error {
	name := filepath.FromSlash(source.Name)
	if err := root.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	_, err = f.Write(source.Data)
	return errors.Join(err, f.Close())
}

// difference is what diff prints as JSON. Its lists are never null.
type difference struct {
	Prefix  string   `json:"prefix"`
	Added   []string `json:"added"`
	Changed []string `json:"changed"`
	Removed []string `json:"removed"`
}

// diff says what a push would change. The code is valid if err is nil.
func diff(args []string, stdout, stderr io.Writer) (code int, err error) {
	flags, prefix := storeFlags("diff")
	format := flags.String("o", "text", "")
	if err := parse(flags, args); err != nil {
		return 0, err
	}
	if *format != "text" && *format != "json" {
		return 0, usagef("-o is text or json, not %q", *format)
	}
	store, err := openStore(*prefix)
	if err != nil {
		return 0, err
	}
	files, err := checked(flags.Args(), stderr)
	if err != nil || files == nil {
		return exitErrors, err
	}
	published, err := store.Pull(context.Background())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	d, text := compare(published, files)
	d.Prefix = strings.Trim(*prefix, "/")
	if *format == "json" {
		err = printJSON(stdout, d)
	} else {
		_, err = io.WriteString(stdout, text)
	}
	if len(d.Added)+len(d.Changed)+len(d.Removed) > 0 {
		code = exitDiffers
	}
	return code, err
}

// compare returns the difference between two sets of files, and describes it as text.
func compare(before, after []policy.Source) (d difference, text string) {
	d = difference{Added: []string{}, Changed: []string{}, Removed: []string{}}
	var b strings.Builder
	old, kept := make(map[string]string, len(before)), make(map[string]bool, len(after))
	for _, f := range before {
		old[f.Name] = string(f.Data)
	}
	for _, f := range after {
		kept[f.Name] = true
		was, known := old[f.Name]
		switch {
		case !known:
			d.Added = append(d.Added, f.Name)
			fmt.Fprintf(&b, "added %s\n", f.Name)
		case was != string(f.Data):
			d.Changed = append(d.Changed, f.Name)
			fmt.Fprintf(&b, "changed %s\n", f.Name)
			writeLines(&b, was, string(f.Data))
		}
	}
	for _, f := range before {
		if !kept[f.Name] {
			d.Removed = append(d.Removed, f.Name)
			fmt.Fprintf(&b, "removed %s\n", f.Name)
		}
	}
	return d, b.String()
}

// writeLines writes the lines from the first to the last one that differs.
func writeLines(b *strings.Builder, before, after string) {
	old, now := slices.Collect(strings.Lines(before)), slices.Collect(strings.Lines(after))
	same := 0
	for same < min(len(old), len(now)) && old[same] == now[same] {
		same++
	}
	old, now = old[same:], now[same:]
	for len(old) > 0 && len(now) > 0 && old[len(old)-1] == now[len(now)-1] {
		old, now = old[:len(old)-1], now[:len(now)-1]
	}
	fmt.Fprintf(b, "  line %d\n", same+1)
	for _, line := range old {
		fmt.Fprintf(b, "  - %s\n", harmless(line))
	}
	for _, line := range now {
		fmt.Fprintf(b, "  + %s\n", harmless(line))
	}
}

// harmless returns a line without anything that controls a terminal.
func harmless(line string) string {
	line = strings.TrimSuffix(line, "\n")
	if strings.IndexFunc(line, func(r rune) bool { return r != '\t' && !unicode.IsPrint(r) }) >= 0 {
		return strconv.Quote(line)
	}
	return line
}

// harmlessLines is harmless for each line of a text.
func harmlessLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = harmless(line)
	}
	return strings.Join(lines, "\n")
}

func storeFlags(name string) (flags *flag.FlagSet, prefix *string) {
	flags = flag.NewFlagSet(name, flag.ContinueOnError)
	return flags, flags.String("prefix", "", "")
}

func openStore(prefix string) (*consulkv.Store, error) {
	if strings.Trim(prefix, "/") == "" {
		return nil, usagef("-prefix names the place in Consul, such as mesh/shop")
	}
	return &consulkv.Store{Prefix: prefix}, nil
}

// checked reads the documents of all paths as one set, named relative to their path. It prints the findings of check to stderr. If there is
// an error among them, it returns nil.
func checked(paths []string, stderr io.Writer) ([]policy.Source, error) {
	if len(paths) == 0 {
		return nil, usagef("name the files or folders to publish")
	}
	sources, origins, err := read(paths)
	if err != nil {
		return nil, err
	}
	// The order matters to check: this is the one in which they will be read once they are published.
	order := make([]int, len(sources))
	names := make([]string, len(sources))
	for _, o := range origins {
		for i := o.from; i < o.to; i++ {
			order[i] = i
			if names[i], err = nameBelow(o.name, sources[i].Name); err != nil {
				return nil, err
			}
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return slices.Compare(strings.Split(names[a], "/"), strings.Split(names[b], "/"))
	})
	var sorted, files []policy.Source
	for n, i := range order {
		if n > 0 && names[i] == names[order[n-1]] {
			return nil, fmt.Errorf("%s and %s would have one name, %s: rename one", sources[order[n-1]].Name, sources[i].Name, names[i])
		}
		sorted = append(sorted, sources[i])
		files = append(files, policy.Source{Name: names[i], Data: sources[i].Data})
	}
	report := checkAll(sorted, policy.Workload{})
	inForce := make([]int, len(sources))
	for n, i := range order {
		inForce[i] = report.InForce[n]
	}
	report.InForce = inForce
	findings := append(report.Findings, idle(origins, report, policy.Error)...)
	if len(findings) > 0 {
		if err := printFindings(stderr, findings); err != nil {
			return nil, err
		}
	}
	if findings.Err() != nil {
		return nil, nil
	}
	return files, nil
}

// nameBelow returns the name under which a source is published: that of the file in the folder, or the last part of the path. HCL was
// converted to JSON, and is published as such, so that programs that follow the documents need no HCL.
func nameBelow(origin, name string) (string, error) {
	below, err := filepath.Rel(origin, name)
	if err != nil {
		return "", err
	}
	if below == "." {
		below = filepath.Base(name)
	}
	if filepath.Ext(below) == ".hcl" {
		below += ".json"
	}
	return path.Clean(filepath.ToSlash(below)), nil
}
