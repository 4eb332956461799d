package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/exec"
)

// process is a service in a process of its own.
type process struct {
	name    string
	address string
	command *exec.Cmd
	rpc     *rpc.Client
}

// start starts this program again, as a service. The process ends when the pipe to it is closed, even because its parent
// has died, and with ctx at the latest.
func start(ctx context.Context, name, folder string, others ...*process) (*process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{name: name, command: exec.CommandContext(ctx, program, name, folder)}
	for _, other := range others {
		p.command.Args = append(p.command.Args, other.name+"="+other.address)
	}
	p.command.Stderr = os.Stderr
	stdin, err := p.command.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := p.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.command.Start(); err != nil {
		return nil, err
	}
	p.rpc = rpc.NewClient(pipes{stdout, stdin})
	if err := p.ask("Address", struct{}{}, &p.address); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// at returns the address, or "" if the process could not be started.
func (p *process) at() string {
	if p == nil {
		return ""
	}
	return p.address
}

// stop ends the process, if it was started, and waits for its end.
func (p *process) stop() {
	if p == nil {
		return
	}
	p.rpc.Close()
	p.command.Process.Kill()
	p.command.Wait()
}

// ask calls a method of the process's Service.
func (p *process) ask(method string, args, reply any) error {
	if err := p.rpc.Call("Service."+method, args, reply); err != nil {
		return fmt.Errorf("%s, process %d: %w", p.name, p.command.Process.Pid, err)
	}
	return nil
}

// obey serves the parent's requests until the parent closes the pipe.
func obey(s *Service) error {
	server := rpc.NewServer()
	if err := server.Register(s); err != nil {
		return err
	}
	server.ServeConn(pipes{os.Stdin, os.Stdout})
	return nil
}

// pipes are the pipes between parent and child.
type pipes struct {
	io.ReadCloser
	io.WriteCloser
}

func (p pipes) Close() error { return errors.Join(p.WriteCloser.Close(), p.ReadCloser.Close()) }
