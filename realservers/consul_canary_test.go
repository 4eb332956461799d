package realservers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery/consul"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/consulkv"
	"github.com/nosidecar/mesh/realservers/servers"
)

// canaryRole is a process that calls the service shop all the time, as documents in Consul say. The agent is that of the
// environment. It ends with its standard input.
const canaryRole = "canary"

const (
	canaryProcesses = 50
	canaryCalls     = 40 // that each process counts under each set of documents
	canaryPace      = 100 * time.Millisecond
)

// canaryReport is a line that such a process prints.
type canaryReport struct {
	Load   int       // the number of the set of documents in force, from 1
	At     time.Time // when it came into force
	Calls  int       // counted under it; 0 in the first report
	Canary int       // of these
	Failed int       // of all calls so far
	Error  string    // of one of them
}

func callCanary(stdin io.Reader, stdout io.Writer) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		cancel()
	}()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	client, err := consul.NewClient(nil)
	if err != nil {
		return err
	}
	resolver, err := consul.New(client, consul.Config{})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	out := json.NewEncoder(stdout)
	report := func(r canaryReport) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(r) // whoever started this process may be gone
	}
	var loads atomic.Int64
	m, err := mesh.New(ctx, mesh.WithDiscovery(resolver), mesh.WithPolicyFeed(&consulkv.Store{Prefix: "mesh/shop", Client: client}),
		mesh.WithObserver(mesh.Observer{PolicyLoad: func(load mesh.PolicyLoad) {
			if load.Err == nil {
				report(canaryReport{Load: int(loads.Add(1)), At: time.Now()})
			}
		}}))
	if err != nil {
		return err
	}
	defer m.Close()
	now := canaryReport{}
	for ctx.Err() == nil {
		before := int(loads.Load())
		if before != now.Load {
			now = canaryReport{Load: before, Failed: now.Failed, Error: now.Error}
		}
		name, err := callShop(ctx, m.Client())
		switch {
		case ctx.Err() != nil:
		case err != nil:
			now.Failed++
			now.Error = err.Error()
		case int(loads.Load()) != before: // under one or the other
		case now.Calls < canaryCalls:
			now.Calls++
			if name == "canary" {
				now.Canary++
			}
			if now.Calls == canaryCalls {
				report(now)
			}
		}
		select {
		case <-time.After(canaryPace):
		case <-ctx.Done():
		}
	}
	now.Calls = 0
	report(now)
	return nil
}

func callShop(ctx context.Context, client *http.Client) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://shop/", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	name, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(name), err
}

// canaryProcess is one that was started.
type canaryProcess struct {
	mu      sync.Mutex
	reports []canaryReport
}

// find returns the report about a set of documents: when it came into force, or with counted, its calls.
func (p *canaryProcess) find(load int, counted bool) (canaryReport, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.reports, func(r canaryReport) bool { return r.Load == load && (r.Calls > 0) == counted })
	if i < 0 {
		return canaryReport{}, false
	}
	return p.reports[i], true
}

// startCanary starts a process, and returns how to end it, which waits for its last words.
func startCanary(t *testing.T, env []string) (p *canaryProcess, end func()) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(append(os.Environ(), roleVariable+"="+canaryRole, "GOMAXPROCS=1"), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p = &canaryProcess{}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := json.NewDecoder(out); ; {
			var r canaryReport
			if err := lines.Decode(&r); err != nil {
				return
			}
			p.mu.Lock()
			p.reports = append(p.reports, r)
			p.mu.Unlock()
		}
	}()
	end = sync.OnceFunc(func() {
		kill := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		_ = in.Close()
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("a process ended with %v", err)
		}
	})
	t.Cleanup(end)
	return p, end
}

// split has so many percent of the calls to shop go to the canary.
func split(percent int) []policy.Source {
	return []policy.Source{{Name: "split.yaml", Data: fmt.Appendf(nil, `
apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {name: shop}
spec:
  service: shop
  backends:
  - {service: shop-stable, weight: %d}
  - {service: shop-canary, weight: %d}
`, 100-percent, percent)}}
}

// A canary gets more and more of the calls of many processes, by one write to Consul each time. No call fails.
func TestConsulCanary(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{TLS: true})
	client := consulClient(t, agent, nil)
	for _, name := range []string{"stable", "canary"} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) }))
		t.Cleanup(s.Close)
		at := s.Listener.Addr().(*net.TCPAddr)
		service := &api.AgentServiceRegistration{ID: name, Name: "shop-" + name, Address: at.IP.String(), Port: at.Port}
		if err := client.Agent().ServiceRegister(service); err != nil {
			t.Fatal(err)
		}
	}
	store := &consulkv.Store{Prefix: "mesh/shop", Client: client}
	publish(t, store, split(0))
	for _, name := range []string{"stable", "canary"} {
		await.True(t, "the catalog to have shop-"+name, func() bool {
			all, _, err := client.Health().Service("shop-"+name, "", true, nil)
			return err == nil && len(all) == 1
		})
	}

	began := time.Now()
	env := []string{"CONSUL_HTTP_ADDR=https://" + agent.HTTPS, "CONSUL_CACERT=" + agent.CACert}
	var processes []*canaryProcess
	var ends []func()
	for range canaryProcesses {
		p, end := startCanary(t, env)
		processes, ends = append(processes, p), append(ends, end)
	}
	all := func(load int, counted bool, each func(r canaryReport)) {
		t.Helper()
		for i, p := range processes {
			var r canaryReport
			await.True(t, fmt.Sprintf("process %d to report on set %d (counted: %v)", i, load, counted), func() (ok bool) {
				r, ok = p.find(load, counted)
				return ok
			})
			each(r)
		}
	}
	all(1, true, func(r canaryReport) {
		if r.Canary != 0 {
			t.Errorf("%d of %d calls to the canary, want none yet", r.Canary, r.Calls)
		}
	})
	t.Logf("%d processes under load after %v", canaryProcesses, time.Since(began).Round(time.Millisecond))

	for i, percent := range []int{5, 50, 100} {
		load, before := i+2, time.Now()
		publish(t, store, split(percent))
		written := time.Now()
		var last time.Duration
		all(load, false, func(r canaryReport) { last = max(last, r.At.Sub(written)) })
		calls, canary := 0, 0
		all(load, true, func(r canaryReport) { calls, canary = calls+r.Calls, canary+r.Canary })
		got := 100 * float64(canary) / float64(calls)
		t.Logf("%d%%: written in %v, in force in the last process %v later; %.2f%% of %d calls to the canary",
			percent, written.Sub(before).Round(time.Millisecond), last.Round(time.Millisecond), got, calls)
		// Six standard deviations of what chance does to so many calls are 2.9 points at 5%, 6.7 at 50%.
		room := map[int]float64{5: 3, 50: 7, 100: 0}[percent]
		if got < float64(percent)-room || got > float64(percent)+room {
			t.Errorf("%.2f%% of the calls go to the canary, want %d%%", got, percent)
		}
	}
	var ending sync.WaitGroup
	for _, end := range ends {
		ending.Go(end)
	}
	ending.Wait()
	for i, p := range processes {
		p.mu.Lock()
		if last := p.reports[len(p.reports)-1]; last.Failed > 0 {
			t.Errorf("process %d: %d calls failed, as by %s", i, last.Failed, last.Error)
		}
		p.mu.Unlock()
	}
}
