// Package servers builds and starts real servers for tests: Consul, Jaeger, Kubernetes and Prometheus. They listen on free ports of 127.0.0.1, and stop
// with the test.
package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is far beyond what any server takes to start, on a machine that is busy with other things.
const patience = 2 * time.Minute

// process is a server that runs.
type process struct {
	output logs
	cmd    *exec.Cmd
	exited chan struct{}
}

// launch starts cmd. A process that has ended may be launched again.
func (p *process) launch(cmd *exec.Cmd) error {
	cmd.Stdout, cmd.Stderr = &p.output, &p.output
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	p.cmd, p.exited = cmd, exited
	go func() {
		defer close(exited)
		_ = cmd.Wait()
	}()
	return nil
}

// end has the process end by a signal, or kills it if it does not.
func (p *process) end(how syscall.Signal) {
	_ = p.cmd.Process.Signal(how)
	select {
	case <-p.exited:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// stop ends the process, if it runs, even if it is suspended.
func (p *process) stop(how syscall.Signal) {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	p.end(how)
	p.cmd = nil
}

// logs is what a process has said.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// start starts a program and waits until it answers at ready with 200. Ports that were free may be taken before the program
// listens, so it is tried again with others: command returns what to run.
func start(t testing.TB, command func() (cmd *exec.Cmd, ready string)) {
	t.Helper()
	var err error
	for range 3 {
		if err = tryStart(t, command); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func tryStart(t testing.TB, command func() (cmd *exec.Cmd, ready string)) error {
	p := new(process)
	cmd, ready := command()
	if err := p.launch(cmd); err != nil {
		return err
	}
	if err := p.await(ready); err != nil {
		p.end(syscall.SIGINT)
		return fmt.Errorf("%s: %w; it said:\n%s", cmd.Path, err, p.output.String())
	}
	t.Cleanup(func() {
		p.end(syscall.SIGINT)
		if t.Failed() {
			t.Logf("%s said:\n%s", cmd.Path, p.output.String())
		}
	})
	return nil
}

var errExited = errors.New("it has exited")

// await waits until the server answers at url with 200.
func (p *process) await(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := get(ctx, url); err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return errExited
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", url, ctx.Err())
		case <-tick.C:
		}
	}
}

// client keeps no connection, so that tests leave none.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}

// get returns what is at url.
func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, data)
	}
	return data, err
}

// free returns n addresses on which nothing listens. Their ports are not among those that the kernel gives to connections, which
// would take them from a server that is down for a while: those who dial it in vain connect to themselves at last.
func free(t testing.TB, n int) []string {
	t.Helper()
	var all []string
	for tries := 0; len(all) < n; tries++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000)))
		switch {
		case err == nil:
			defer l.Close() // when all are known, so that they differ
			all = append(all, l.Addr().String())
		case tries > 100*n:
			t.Fatal(err)
		}
	}
	return all
}
