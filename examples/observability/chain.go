// Command observability shows the pages, the metrics and the traces of a chain of services: user calls order, and order calls payment,
// each in a process of its own, over mTLS. Each has a page and metrics. Prometheus scrapes them if it is installed, and Jaeger gets the spans if
// the program that -jaeger names is installed. Payment fails now and then, which the page of order shows.
//
//	go run . -for 5m
//
// Everything listens on free ports of 127.0.0.1, and stops when the time is up or with an interrupt.
package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/nosidecar/mesh/tlsid"
)

//go:embed town.yaml
var documents []byte

func main() {
	log.SetFlags(0)
	role := flag.String("role", "", "the service to run; this program starts itself with it")
	certs := flag.String("certs", "", "the `folder` of the certificates of a role")
	collector := flag.String("collector", "", "the `address` of a receiver of OTLP over gRPC, such as a Jaeger that runs already")
	jaeger := flag.String("jaeger", "jaeger-all-in-one", "the `program` of Jaeger to start, if it is installed")
	length := flag.Duration("for", 10*time.Second, "how long to make calls")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGPIPE)
	defer stop()
	var err error
	if *role != "" {
		err = serve(context.WithoutCancel(ctx), *role, *certs, *collector) // ends with its input
	} else {
		err = run(ctx, os.Stdout, *length, *collector, *jaeger)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// run starts the chain, calls it for some time, and stops it.
func run(ctx context.Context, out io.Writer, length time.Duration, collector, jaeger string) (err error) {
	dir, err := os.MkdirTemp("", "observability")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var programs programs
	defer programs.stop()
	if collector == "" {
		if collector, err = programs.jaeger(out, jaeger); err != nil {
			return err
		}
	}
	all, err := programs.services(out, dir, collector)
	if err != nil {
		return err
	}
	web, err := newMember(ctx, "web", dir, collector)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, web.close()) }()
	if err := web.know(all); err != nil {
		return err
	}
	if err := programs.prometheus(out, dir); err != nil {
		return err
	}

	fmt.Fprintf(out, "making calls for %v\n", length)
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	var calls, failed int
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		calls++
		if err := web.call(ctx, http.MethodGet, fmt.Sprintf("http://user-service/users/%d", calls)); err != nil && ctx.Err() == nil {
			failed++
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	fmt.Fprintf(out, "%d calls, of which %d failed\n\n", calls, failed)
	return programs.report(out, "order-service")
}

// program is a process that was started.
type program struct {
	cmd     *exec.Cmd
	input   io.Closer // nil if it is to be interrupted
	private string    // of a service: where its page is
}

type programs struct {
	all   []*program
	pages map[string]string // by service
}

func (p *programs) start(cmd *exec.Cmd, input io.Closer) error {
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	p.all = append(p.all, &program{cmd: cmd, input: input})
	return nil
}

// stop ends what was started, the last first.
func (p *programs) stop() {
	for _, one := range slices.Backward(p.all) {
		if one.input != nil {
			one.input.Close()
		} else {
			_ = one.cmd.Process.Signal(os.Interrupt)
		}
	}
	var ending sync.WaitGroup
	for _, one := range p.all {
		ending.Go(func() {
			kill := time.AfterFunc(10*time.Second, func() { _ = one.cmd.Process.Kill() })
			defer kill.Stop()
			_ = one.cmd.Wait()
		})
	}
	ending.Wait()
}

// services starts the chain and returns where its services are.
func (p *programs) services(out io.Writer, dir, collector string) (map[string]string, error) {
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		return nil, err
	}
	ca.RotateEvery = -1
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := ca.WriteFiles(filepath.Join(dir, "web"), "default", "web"); err != nil {
		return nil, err
	}
	at, inputs := map[string]string{}, []io.Writer{}
	p.pages = map[string]string{}
	for _, name := range []string{"user-service", "order-service", "payment-service"} {
		if err := ca.WriteFiles(filepath.Join(dir, name), "default", name); err != nil {
			return nil, err
		}
		cmd := exec.Command(self, "-role", name, "-certs", dir, "-collector", collector)
		input, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		output, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := p.start(cmd, input); err != nil {
			return nil, err
		}
		var s started
		if err := json.NewDecoder(output).Decode(&s); err != nil {
			return nil, fmt.Errorf("%s does not say where it is: %w", name, err)
		}
		at[name], p.pages[name] = s.Service, s.Private
		inputs = append(inputs, input)
		fmt.Fprintf(out, "%s: page http://%s/debug/mesh/ metrics http://%s/metrics\n", name, s.Private, s.Private)
	}
	for _, input := range inputs {
		if err := json.NewEncoder(input).Encode(at); err != nil {
			return nil, err
		}
	}
	return at, nil
}

// prometheus starts a Prometheus that scrapes the services, if it is installed.
func (p *programs) prometheus(out io.Writer, dir string) error {
	path, err := exec.LookPath("prometheus")
	if err != nil {
		fmt.Fprintln(out, "prometheus is not installed: the metrics are where the pages are")
		return nil
	}
	config := "global: {scrape_interval: 1s}\nscrape_configs:\n"
	for name, address := range p.pages {
		config += fmt.Sprintf("- {job_name: %s, static_configs: [{targets: [%q]}]}\n", name, address)
	}
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	address, err := free()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "prometheus: http://%s\n", address)
	return p.start(exec.Command(path, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+address, "--log.level=error", "--enable-feature=exemplar-storage"), nil)
}

// jaeger starts a Jaeger, if there is one, and returns where it takes spans.
func (p *programs) jaeger(out io.Writer, name string) (collector string, err error) {
	path, err := exec.LookPath(name)
	if err != nil {
		fmt.Fprintf(out, "%s is not installed: spans are created, but not sent anywhere\n", name)
		return "", nil
	}
	args := []string{"--log-level=error"}
	at := map[string]string{}
	for _, port := range []string{"admin.http", "collector.otlp.grpc", "collector.otlp.http", "collector.grpc-server", "collector.http-server",
		"query.http-server", "query.grpc-server"} {
		if at[port], err = free(); err != nil {
			return "", err
		}
		args = append(args, "--"+port+".host-port="+at[port])
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "SPAN_STORAGE_TYPE=memory", "OTEL_TRACES_SAMPLER=always_off")
	fmt.Fprintf(out, "jaeger: http://%s\n", at["query.http-server"])
	return at["collector.otlp.grpc"], p.start(cmd, nil)
}

// report prints what the page of a service says to terminals.
func (p *programs) report(out io.Writer, service string) error {
	resp, err := http.Get("http://" + p.pages[service] + "/debug/mesh/?format=text")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the page of %s: %s", service, resp.Status)
	}
	fmt.Fprintf(out, "what the page of %s says:\n\n", service)
	_, err = io.Copy(out, resp.Body)
	return err
}

// free returns an address on which nothing listens.
func free() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
