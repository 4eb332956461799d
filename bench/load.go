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

// A Worker makes calls one after the other. It is made for one of several goroutines, with the context of its calls, and returns the
// function that makes one.
type Worker func(ctx context.Context) (call func() error, err error)

// Worker returns a Worker that calls the URLs of c in turn, each time until the response is read.
func (c *Caller) Worker() Worker {
	var next atomic.Uint64
	return func(ctx context.Context) (func() error, error) {
		buf := make([]byte, 1024)
		return func() error { return get(ctx, c.Client, c.URLs[next.Add(1)%uint64(len(c.URLs))], buf) }, nil
	}
}

// LoadFor is [Load] for the time span, which begins after a warm-up. The warm-up does not count: the garbage collector has just emptied
// pools and halved stacks, and a service that calls all the time fills and grows them once, not once in such a short time.
func LoadFor(inFlight int, warmUp, span time.Duration, worker Worker) (Result, error) {
	var calls atomic.Int64
	var ended atomic.Bool
	var err error
	var load sync.WaitGroup
	load.Go(func() {
		_, err = Load(inFlight, func() bool { calls.Add(1); return !ended.Load() }, worker)
	})
	time.Sleep(warmUp)
	n, start, cpu := calls.Load(), time.Now(), CPUTime()
	time.Sleep(span)
	result := Result{int(calls.Load() - n), time.Since(start), CPUTime() - cpu}
	ended.Store(true)
	load.Wait()
	return result, err
}

// Load keeps inFlight calls in flight, each followed by the next as soon as it has ended, while more returns true. The first failure ends
// all.
func Load(inFlight int, more func() bool, worker Worker) (Result, error) {
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	var calls atomic.Int64
	var callers sync.WaitGroup
	start, cpu := time.Now(), CPUTime()
	for range inFlight {
		callers.Go(func() {
			call, err := worker(ctx)
			n := 0
			for ; err == nil && more() && ctx.Err() == nil; n++ {
				err = call()
			}
			if err != nil {
				stop(err)
				return
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
