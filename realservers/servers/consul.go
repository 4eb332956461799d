package servers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// ConsulConfig says how an agent runs. The zero value is one without ACLs and TLS that keeps its data over a restart.
type ConsulConfig struct {
	ACL   string         // the default policy of its ACLs, "allow" or "deny"; "" turns ACLs off
	TLS   bool           // serve the API over HTTPS, too
	Dev   bool           // keep everything in memory: a restart begins with nothing; for a single server
	Extra map[string]any // more of the agent's configuration, by the names of its JSON
}

// Consul is an agent, a server or a client.
type Consul struct {
	Name   string // the node's
	HTTP   string // the address of the API
	HTTPS  string // the address of the API over HTTPS, "" without TLS
	GRPC   string // the address that speaks xDS in plaintext
	CACert string // the file that verifies HTTPS
	Token  string // may do everything; "" without ACLs

	serfLAN string
	server  bool
	args    []string
	process
}

const consulToken = "5ba8b8b6-6f5c-4f6f-9d4f-0e1f3c1f8d10"

// StartConsul starts a server of its own datacenter, dc1, and waits until it leads.
func StartConsul(t testing.TB, cfg ConsulConfig) *Consul {
	t.Helper()
	return StartConsulCluster(t, 1, cfg)[0]
}

// StartConsulCluster starts n servers of one datacenter and waits until they have a leader.
func StartConsulCluster(t testing.TB, n int, cfg ConsulConfig) []*Consul {
	t.Helper()
	if cfg.Dev && n != 1 {
		t.Fatal("an agent with Dev is one server")
	}
	return startCluster(t, free, n, cfg)
}

func startCluster(t testing.TB, ports portsOf, n int, cfg ConsulConfig) []*Consul {
	t.Helper()
	return startConsul(t, ports, func(ports portsOf) []*Consul {
		var all []*Consul
		for i := range n {
			all = append(all, newConsul(t, "server-"+strconv.Itoa(i+1), cfg, n, ports))
		}
		for _, c := range all[1:] {
			c.args = append(c.args, "-retry-join", all[0].serfLAN, "-retry-interval", "200ms")
		}
		return all
	})
}

// StartConsulClient starts a client agent that joins the servers, with the same ACLs.
func StartConsulClient(t testing.TB, name string, servers []*Consul, cfg ConsulConfig) *Consul {
	t.Helper()
	return startConsul(t, free, func(ports portsOf) []*Consul {
		c := newConsul(t, name, cfg, 0, ports)
		for _, s := range servers {
			c.args = append(c.args, "-retry-join", s.serfLAN)
		}
		c.args = append(c.args, "-retry-interval", "200ms")
		return []*Consul{c}
	})[0]
}

// portsOf returns n addresses that are free.
type portsOf func(t testing.TB, n int) []string

// startConsul starts the agents that prepare returns, and waits until they are ready. Ports that were free may be taken before they
// listen, so it is tried again with others.
func startConsul(t testing.TB, ports portsOf, prepare func(portsOf) []*Consul) []*Consul {
	t.Helper()
	for tries := 1; ; tries++ {
		all := prepare(ports)
		err := startAll(all)
		if err == nil {
			for _, c := range all {
				t.Cleanup(func() {
					c.Kill()
					if t.Failed() {
						t.Logf("%s said:\n%s", c.Name, c.output.String())
					}
				})
			}
			return all
		}
		for _, c := range all {
			c.Kill()
		}
		if tries == 3 || !strings.Contains(err.Error(), portTaken) {
			t.Fatal(err)
		}
	}
}

// portTaken is what an agent says about a port that it cannot have. It may run on without.
const portTaken = "address already in use"

func startAll(all []*Consul) error {
	for _, c := range all {
		if err := c.start(); err != nil {
			return err
		}
	}
	for _, c := range all {
		if err := c.await(all); err != nil {
			return err
		}
	}
	return nil
}

// newConsul prepares an agent; expect is the number of servers that elect a leader, 0 for a client.
func newConsul(t testing.TB, name string, cfg ConsulConfig, expect int, ports portsOf) *Consul {
	t.Helper()
	path, dir := ConsulProgram(t), t.TempDir()
	at := ports(t, 7)
	c := &Consul{Name: name, HTTP: at[0], GRPC: at[1], serfLAN: at[3], server: expect > 0}
	port := func(i int) int {
		_, text, _ := net.SplitHostPort(at[i])
		n, _ := strconv.Atoi(text)
		return n
	}
	numbers := map[string]any{"http": port(0), "grpc": port(1), "grpc_tls": -1, "dns": -1, "server": port(2), "serf_lan": port(3), "serf_wan": port(4)}
	config := map[string]any{
		"node_name": name, "datacenter": "dc1", "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "ports": numbers,
		"disable_update_check": true, "log_level": "warn", "performance": map[string]any{"raft_multiplier": 1},
		"connect": map[string]any{"enabled": true}, "data_dir": filepath.Join(dir, "data"),
	}
	switch {
	case cfg.Dev:
		c.args = []string{"-dev"}
		delete(config, "data_dir")
	case c.server:
		config["server"], config["bootstrap_expect"] = true, expect
	}
	if cfg.ACL != "" {
		c.Token = consulToken
		config["acl"] = map[string]any{"enabled": true, "default_policy": cfg.ACL, "enable_token_persistence": true,
			"tokens": map[string]any{"initial_management": consulToken, "agent": consulToken}}
	}
	if cfg.TLS {
		c.HTTPS, numbers["https"] = at[5], port(5)
		var cert, key string
		c.CACert, cert, key = certificate(t, dir)
		config["tls"] = map[string]any{"https": map[string]any{"ca_file": c.CACert, "cert_file": cert, "key_file": key, "verify_incoming": false}}
	}
	maps.Copy(config, cfg.Extra)
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "agent.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	c.args = append([]string{path, "agent", "-config-file", file}, c.args...)
	return c
}

// ConsulProgram returns the path of the program, which is named consul. It builds it if that has not been done yet.
func ConsulProgram(t testing.TB) string {
	t.Helper()
	path, err := consulPath()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var consulPath = sync.OnceValues(func() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	return build(filepath.Join(filepath.Dir(file), "..", "consul"), "github.com/hashicorp/consul", "consul")
})

// certificate writes a certificate for 127.0.0.1 that signed itself, and its key.
func certificate(t testing.TB, dir string) (ca, cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "agent"}, NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, cert, key
}

func (c *Consul) start() error { return c.launch(exec.Command(c.args[0], c.args[1:]...)) }

// await waits until the agent knows a leader and, if it is a server, can issue certificates. It does not wait for a leader if one of the agents
// that were started together cannot run.
func (c *Consul) await(together []*Consul) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second) // whoever has the port may not answer
		err := c.ready(try)
		cancel()
		if err == nil {
			return nil
		}
		for _, other := range together {
			if failed := other.failed(); failed != nil {
				return failed
			}
		}
		select {
		case <-ctx.Done():
			err = fmt.Errorf("%s has no leader: %w", c.Name, err)
			for _, other := range together {
				err = fmt.Errorf("%w\n%s said:\n%s", err, other.Name, other.output.String())
			}
			return err
		case <-tick.C:
		}
	}
}

// failed returns why the agent cannot run, if it cannot.
func (c *Consul) failed() error {
	exited := false
	select {
	case <-c.exited:
		exited = true
	default:
	}
	switch said := c.output.String(); {
	case strings.Contains(said, portTaken):
		return fmt.Errorf("%s has not all of its ports; it said:\n%s", c.Name, said)
	case exited:
		return fmt.Errorf("%s: %w; it said:\n%s", c.Name, errExited, said)
	}
	return nil
}

func (c *Consul) ready(ctx context.Context) error {
	client := c.Client()
	options := (&api.QueryOptions{}).WithContext(ctx)
	leader, err := client.Status().LeaderWithQueryOptions(options)
	switch {
	case err != nil:
		return err
	case leader == "":
		return errors.New("no leader")
	}
	// A new leader takes a moment until it has written what it begins with: its own node and the root of Connect.
	nodes, _, err := client.Catalog().Nodes(options)
	if err == nil && len(nodes) == 0 {
		err = errors.New("no node")
	}
	if err == nil {
		_, _, err = client.Connect().CARoots(options)
	}
	return err
}

// Client returns a client that may do everything and keeps no connection.
func (c *Consul) Client() *api.Client {
	transport := api.DefaultConfig().Transport
	transport.DisableKeepAlives = true
	client, err := api.NewClient(&api.Config{Address: c.HTTP, Scheme: "http", Token: c.Token, Transport: transport})
	if err != nil {
		panic(fmt.Sprintf("an address of ours: %v", err))
	}
	return client
}

// Kill ends the agent at once, as a crash does. An agent that does not run stays so.
func (c *Consul) Kill() { c.stop(syscall.SIGKILL) }

// Stop has the agent shut down: its blocked queries end with an error, and it leaves its services as they are.
func (c *Consul) Stop() { c.stop(syscall.SIGTERM) }

// Suspend has the agent stand still, with its connections open, until Resume.
func (c *Consul) Suspend(t testing.TB) { c.signal(t, syscall.SIGSTOP) }

// Resume ends Suspend.
func (c *Consul) Resume(t testing.TB) { c.signal(t, syscall.SIGCONT) }

func (c *Consul) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// Restart starts an agent that was killed or stopped again, on the same addresses and with its data, and waits until it knows a
// leader.
func (c *Consul) Restart(t testing.TB) {
	t.Helper()
	if err := startAll([]*Consul{c}); err != nil {
		t.Fatal(err)
	}
}
