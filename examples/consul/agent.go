package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/discovery/consul"
)

// agent is a Consul that keeps everything in memory: a server and an agent in one process, with Connect.
type agent struct {
	client  *api.Client
	command *exec.Cmd
	output  bytes.Buffer
}

// startAgent starts Consul on free ports and waits until it can issue certificates.
func startAgent(ctx context.Context, program string) (*agent, error) {
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	a := &agent{}
	a.command = exec.CommandContext(ctx, program, "agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-log-level", "warn",
		"-hcl", fmt.Sprintf("ports { http = %d, server = %d, serf_lan = %d, serf_wan = %d, dns = -1, grpc = -1, grpc_tls = -1 }",
			ports[0], ports[1], ports[2], ports[3]),
		"-hcl", "disable_update_check = true")
	a.command.Stdout, a.command.Stderr = &a.output, &a.output
	if err := a.command.Start(); err != nil {
		return nil, err
	}
	if a.client, err = consul.NewClient(&api.Config{Address: fmt.Sprintf("http://127.0.0.1:%d", ports[0])}); err != nil {
		a.stop()
		return nil, err
	}
	for a.ready(ctx) != nil {
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			a.stop()
			return nil, fmt.Errorf("the agent does not get ready (%w); it said:\n%s", err, a.output.Bytes())
		}
	}
	return a, nil
}

func (a *agent) ready(ctx context.Context) error {
	_, _, err := a.client.Connect().CARoots((&api.QueryOptions{}).WithContext(ctx))
	return err
}

// stop ends the agent at once, as a crash does.
func (a *agent) stop() {
	_ = a.command.Process.Signal(os.Kill)
	_ = a.command.Wait() // its error says only that the agent was killed
}

// freePorts returns ports that nobody listens on.
func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // only when all are known, so that they differ
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
