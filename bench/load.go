package bench

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Result is what a load was served.
type Result struct {
	Calls   int
	Elapsed time.Duration
	CPU     time.Duration // of this process, user and system time
}

// PerSecond returns the calls served in a second.
func (r Result) PerSecond() float64 { return float64(r.Calls) / r.Elapsed.Seconds() }

// CPUPerCall returns the CPU time of a call, in microseconds.
func (r Result) CPUPerCall() float64 { return r.CPU.Seconds() * 1e6 / float64(r.Calls) }

// Run keeps inFlight calls in flight, each followed by the next as soon as its response is read, while more returns true. They go to
// the URLs of c in turn. The first failure ends the run.
func (c *Caller) Run(inFlight int, more func() bool) (Result, error) {
	var next atomic.Uint64
	buffers := sync.Pool{New: func() any { return new([1024]byte) }}
	return Load(inFlight, more, func(ctx context.Context) error {
		buf := buffers.Get().(*[1024]byte)
		defer buffers.Put(buf)
		return get(ctx, c.Client, c.URLs[next.Add(1)%uint64(len(c.URLs))], buf[:])
	})
}

// Load is Run for any kind of call.
func Load(inFlight int, more func() bool, call func(context.Context) error) (Result, error) {
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	var calls atomic.Int64
	var callers sync.WaitGroup
	start, cpu := time.Now(), CPUTime()
	for range inFlight {
		callers.Go(func() {
			n := 0
			for ; more() && ctx.Err() == nil; n++ {
				if err := call(ctx); err != nil {
					stop(err)
					return
				}
			}
			calls.Add(int64(n))
		})
	}
	callers.Wait()
	return Result{int(calls.Load()), time.Since(start), CPUTime() - cpu}, context.Cause(ctx)
}

func get(ctx context.Context, client *http.Client, url string, buf []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for err == nil {
		_, err = resp.Body.Read(buf)
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// CPUTime returns the CPU time that this process has used.
func CPUTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err) // the arguments are right
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
