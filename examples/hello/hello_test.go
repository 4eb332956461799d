// Package hello_test runs the two programs of the README as it says, and holds the README to their text.
package hello_test

import (
	"bufio"
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/tlsid"
)

// TestREADMEPrograms starts the server and the client as two processes.
func TestREADMEPrograms(t *testing.T) {
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", dir+string(filepath.Separator), "./orders", "./web")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	// Nothing here takes nearly as long. What hangs ends then, and fails.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"orders", "web"} {
		if err := ca.WriteFiles(filepath.Join(dir, "certs", "shop", name), "shop", name); err != nil {
			t.Fatal(err)
		}
	}
	port := freePort(t)
	documents, err := os.ReadFile("mesh.d/orders.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "mesh.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	documents = bytes.ReplaceAll(documents, []byte("8081"), []byte(strconv.Itoa(port)))
	if err := os.WriteFile(filepath.Join(dir, "mesh.d", "orders.yaml"), documents, 0o644); err != nil {
		t.Fatal(err)
	}

	orders := exec.CommandContext(ctx, filepath.Join(dir, "orders"), "-listen", "127.0.0.1:"+strconv.Itoa(port))
	orders.Dir = dir
	log, err := orders.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := orders.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		orders.Process.Kill()
		orders.Wait()
	}()
	lines := bufio.NewScanner(log)
	for listening := false; !listening; {
		if !lines.Scan() {
			t.Fatalf("orders ended before it listened: %v", lines.Err())
		}
		t.Log("orders: ", lines.Text())
		listening = strings.Contains(lines.Text(), "listening on")
	}

	web := exec.CommandContext(ctx, filepath.Join(dir, "web"))
	web.Dir = dir
	out, err := web.CombinedOutput()
	if err != nil {
		t.Fatalf("web: %v\n%s", err, out)
	}
	const want = "200 OK: order 42 for spiffe://cluster.local/ns/shop/sa/web\n403 Forbidden: RBAC: access denied\n"
	if string(out) != want {
		t.Errorf("web printed\n%s\nwant\n%s", out, want)
	}
}

// freePort returns a port that is free, and that the kernel gives to nobody who asks for any.
func freePort(t *testing.T) int {
	for range 100 {
		port := 12000 + rand.IntN(20000)
		if ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			ln.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// TestREADMEQuotesPrograms compares the programs and documents that the README shows with the files that run.
func TestREADMEQuotesPrograms(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"orders/main.go", "web/main.go", "mesh.d/orders.yaml"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(text, []byte("package main")); i > 0 {
			text = text[i:]
		}
		if !bytes.Contains(readme, bytes.TrimSpace(text)) {
			t.Errorf("README.md does not show %s as it is", name)
		}
	}
}
