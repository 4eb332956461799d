package realservers

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/discovery/consul"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/realservers/servers"
)

// Clients of one host share the connections that the agent takes from it, and none of them is left out for good.
func TestConsulDiscoveryOfManyClients(t *testing.T) {
	leak.Check(t)
	const clients, many, most = 6, 20, 40
	agent := servers.StartConsul(t, servers.ConsulConfig{Extra: map[string]any{"limits": map[string]any{"http_max_conns_per_client": most}}})
	registerMany(t, agent, many, "v1")
	var d dialled
	var refused atomic.Int64
	var all []*watching
	for range clients {
		resolver, err := consul.New(consulClient(t, agent, &api.Config{Transport: d.transport()}), consul.Config{})
		if err != nil {
			t.Fatal(err)
		}
		w := watchMany(resolver, many, func(err error) {
			if strings.Contains(err.Error(), "429") || strings.Contains(err.Error(), "http_max_conns_per_client") {
				refused.Add(1)
			} else {
				t.Log(err)
			}
		})
		defer w.Close()
		all = append(all, w)
	}
	for _, version := range []string{"v1", "v2"} {
		began := time.Now()
		if version == "v2" {
			await.True(t, "a registration to be taken", func() bool { return register(agent, many, version) == nil })
		}
		for i, w := range all {
			await.True(t, fmt.Sprintf("client %d to have %s", i, version), func() bool { return w.have(version) == many })
		}
		t.Logf("%s everywhere after %v; %d connections, at most %d at a time, refusals were told %d times", version,
			time.Since(began).Round(time.Millisecond), d.made.Load(), d.most.Load(), refused.Load())
	}
}

// watcherRole is the process of these benchmarks: it watches services of Consul and answers, on its standard input and output, "watch",
// "have VERSION" and "stats".
const (
	watcherRole     = "consul-watcher"
	watcherVariable = "MESH_TEST_CONSUL"
)

type watcherConfig struct {
	Address, CAFile string
	Services        int
}

type watcherStats struct {
	RSS                           int64 // bytes, after a collection
	Goroutines                    int
	Connections, Dialled, Queries int64
}

func runWatcher() error {
	var config watcherConfig
	if err := json.Unmarshal([]byte(os.Getenv(watcherVariable)), &config); err != nil {
		return err
	}
	var d dialled
	var queries atomic.Int64
	transport := d.transport()
	transport.Proxy = func(*http.Request) (*url.URL, error) { queries.Add(1); return nil, nil } // is asked for each request
	client, err := consul.NewClient(&api.Config{Address: config.Address, TLSConfig: api.TLSConfig{CAFile: config.CAFile}, Transport: transport})
	if err != nil {
		return err
	}
	resolver, err := consul.New(client, consul.Config{})
	if err != nil {
		return err
	}
	var w *watching
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var answer any
		switch command, version, _ := strings.Cut(lines.Text(), " "); command {
		case "watch":
			w = watchMany(resolver, config.Services, func(error) {})
			answer = true
		case "have":
			answer = w.have(version)
		case "stats":
			debug.FreeOSMemory()
			answer = watcherStats{resident(), runtime.NumGoroutine(), d.open.Load(), d.made.Load(), queries.Load()}
		}
		if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
			return err
		}
	}
	return nil
}

// resident returns how much memory of this process is its own.
func resident() int64 {
	data, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(data)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	return 0
}

// watcherProcess is a process that watches.
type watcherProcess struct {
	in  io.Writer
	out *json.Decoder
}

func startWatcher(b *testing.B, config watcherConfig) *watcherProcess {
	b.Helper()
	text, err := json.Marshal(config)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+watcherRole, watcherVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &watcherProcess{in, json.NewDecoder(out)}
}

func (p *watcherProcess) ask(b *testing.B, command string, answer any) {
	b.Helper()
	if _, err := fmt.Fprintln(p.in, command); err != nil {
		b.Fatal(err)
	}
	if err := p.out.Decode(answer); err != nil {
		b.Fatal(err)
	}
}

func (p *watcherProcess) awaitVersion(b *testing.B, version string, services int) {
	b.Helper()
	await.True(b, fmt.Sprintf("%s of %d services", version, services), func() bool {
		var n int
		p.ask(b, "have "+version, &n)
		return n == services
	})
}

// BenchmarkConsulDiscovery reports what it takes to watch: one process with 200 services, and fifty processes on one host with 20 each.
func BenchmarkConsulDiscovery(b *testing.B) {
	for _, run := range []struct {
		name                string
		secure              bool
		processes, services int
	}{
		{"HTTPS/1x200", true, 1, 200},
		{"HTTP/1x200", false, 1, 200},
		{"HTTPS/50x20", true, 50, 20},
		{"HTTP/50x20", false, 50, 20},
	} {
		b.Run(run.name, func(b *testing.B) {
			agent := servers.StartConsul(b, servers.ConsulConfig{TLS: run.secure})
			config := watcherConfig{Address: "http://" + agent.HTTP, Services: run.services}
			if run.secure {
				config.Address, config.CAFile = "https://"+agent.HTTPS, agent.CACert
			}
			if err := register(agent, run.services, "v1"); err != nil {
				b.Fatal(err)
			}
			var all []*watcherProcess
			before := make([]watcherStats, run.processes)
			for i := range run.processes {
				all = append(all, startWatcher(b, config))
				all[i].ask(b, "stats", &before[i])
			}
			b.ResetTimer()
			for range b.N {
				fleet(b, agent, all, before, run.services)
			}
		})
	}
}

func fleet(b *testing.B, agent *servers.Consul, all []*watcherProcess, before []watcherStats, services int) {
	began := time.Now()
	for _, p := range all {
		var ok bool
		p.ask(b, "watch", &ok)
	}
	for _, p := range all {
		p.awaitVersion(b, "v1", services)
	}
	known := time.Since(began)
	// Processes find out what the agent takes; then they are at rest.
	<-time.After(20 * time.Second)
	rest := make([]watcherStats, len(all))
	for i, p := range all {
		p.ask(b, "stats", &rest[i])
	}
	window := time.Now()
	<-time.After(10 * time.Second)
	var queries, connections, dialled, goroutines, memory int64
	for i, p := range all {
		var now watcherStats
		p.ask(b, "stats", &now)
		queries += now.Queries - rest[i].Queries
		connections += now.Connections
		dialled += now.Dialled
		goroutines += int64(now.Goroutines)
		memory += now.RSS - before[i].RSS
	}
	perSecond := float64(queries) / time.Since(window).Seconds()
	began = time.Now()
	await.True(b, "a registration to be taken", func() bool { return register(agent, services, "v2") == nil })
	for _, p := range all {
		p.awaitVersion(b, "v2", services)
	}
	b.ReportMetric(float64(memory)/float64(len(all))/1e6, "MB/process")
	b.ReportMetric(float64(goroutines)/float64(len(all)), "goroutines/process")
	b.ReportMetric(float64(connections), "connections")
	b.ReportMetric(float64(dialled), "dialled")
	b.ReportMetric(perSecond, "queries/s")
	b.ReportMetric(known.Seconds(), "s-until-known")
	b.ReportMetric(time.Since(began).Seconds(), "s-until-followed")
	b.ReportMetric(0, "ns/op")
}
