package main

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/retry"
)

// scene is some servers, some documents, and what happens between them.
type scene struct {
	title     string
	documents []string // of the folder mesh.d
	story     string
	play      func(*scene)

	report
	ctx      context.Context
	findings policy.Findings  // from loading the documents
	registry discovery.Memory // the scene's services
	servers  []*server
	meshes   []*mesh.Mesh
	done     chan struct{}
}

// begin starts the scene, which ends with ctx at the latest.
func (s *scene) begin(ctx context.Context) {
	s.ctx, s.done = ctx, make(chan struct{})
	go func() {
		defer close(s.done)
		s.play(s)
		for _, m := range s.meshes {
			m.Close()
		}
		for _, server := range s.servers {
			server.close()
		}
	}()
}

// wait waits for the end of the scene.
func (s *scene) wait() { <-s.done }

// service starts the endpoints of a service and registers them under its name.
func (s *scene) service(name string, servers ...*server) {
	var endpoints []discovery.Endpoint
	for _, server := range servers {
		endpoints = append(endpoints, server.start())
	}
	s.servers = append(s.servers, servers...)
	s.registry.Set(name, endpoints...)
}

// answer is how a call ended for its caller.
type answer struct {
	status int
	from   string // the body: the version or name of the server
	tries  int    // requests that were sent for it
	header http.Header
	err    error // why there was no response, or why its body ended early
	took   time.Duration
}

func (a answer) ok() bool { return a.status == http.StatusOK }

// get makes a call with the method GET.
func (s *scene) get(client *http.Client, url string, header ...string) answer {
	return s.call(client, http.MethodGet, url, header...)
}

// call makes a call. The header is names and values in turn.
func (s *scene) call(client *http.Client, method, url string, header ...string) answer {
	req, err := http.NewRequestWithContext(s.ctx, method, url, nil)
	if err != nil {
		return answer{err: err}
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	start := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return answer{err: err, took: time.Since(start)}
	}
	defer resp.Body.Close()
	from, err := io.ReadAll(resp.Body) // a call is over when its body is
	return answer{
		status: resp.StatusCode,
		from:   string(from),
		tries:  retry.Attempts(resp),
		header: resp.Header,
		err:    err,
		took:   time.Since(start),
	}
}

// times makes n calls, at most atOnce of them concurrently.
func times(n, atOnce int, call func(i int) answer) answers {
	all := make(answers, n)
	next := make(chan int)
	var callers sync.WaitGroup
	for range atOnce {
		callers.Go(func() {
			for i := range next {
				all[i] = call(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	callers.Wait()
	return all
}

// answers are those of many calls.
type answers []answer

// where returns the answers for which is returns true.
func (all answers) where(is func(answer) bool) answers {
	var some answers
	for _, a := range all {
		if is(a) {
			some = append(some, a)
		}
	}
	return some
}

// ok counts the calls that succeeded.
func (all answers) ok() int { return len(all.where(answer.ok)) }

// from counts the calls that a server with that name served.
func (all answers) from(name string) int {
	return len(all.where(func(a answer) bool { return a.ok() && a.from == name }))
}

// with counts the calls that were answered with a status.
func (all answers) with(status int) int {
	return len(all.where(func(a answer) bool { return a.status == status }))
}

// tries counts the requests that were sent for all calls together.
func (all answers) tries() int {
	n := 0
	for _, a := range all {
		n += a.tries
	}
	return n
}

// quickest returns the least time that a call took.
func (all answers) quickest() time.Duration {
	if len(all) == 0 {
		return 0
	}
	return slices.MinFunc(all, func(a, b answer) int { return cmp.Compare(a.took, b.took) }).took
}
