package main

import (
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/nosidecar/mesh/tlsid"
)

// certs writes certificates for the named workloads, issued by one authority whose key is not kept.
func certs(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("certs", flag.ContinueOnError)
	folder := flags.String("o", "certs", "")
	domain := flags.String("d", "cluster.local", "")
	ttl := flags.Duration("t", 24*time.Hour, "")
	if err := parse(flags, args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return usagef("name the workloads, each as NAMESPACE/ACCOUNT")
	}
	ca, err := tlsid.NewDevCA(*domain)
	if err != nil {
		return err
	}
	ca.TTL, ca.RotateEvery = *ttl, -1
	workloads := make([][2]string, flags.NArg())
	for i, name := range flags.Args() {
		namespace, account, ok := strings.Cut(name, "/")
		if !ok {
			return usagef("%q is not NAMESPACE/ACCOUNT", name)
		}
		// Invalid names are refused before anything is written, because names become paths.
		if _, err := ca.Identity(namespace, account); err != nil {
			return err
		}
		workloads[i] = [2]string{namespace, account}
	}
	for _, w := range workloads {
		dir := filepath.Join(*folder, w[0], w[1])
		if err := ca.WriteFiles(dir, w[0], w[1]); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(stdout, "%s: spiffe://%s/ns/%s/sa/%s\n", dir, *domain, w[0], w[1]); err != nil {
			return err
		}
	}
	return nil
}
