// Command compare runs this library and its peers in turn, several times over, and prints how they compare, in Markdown.
//
//	go run ./compare > results.md
//
// Rounds are short and many, so whatever else the machine does weighs on all sides alike. Over loopback, every figure is the median of
// all rounds, and every ratio the median of the ratios within a round, with its 95% confidence interval. A side runs for a while before it
// counts. With a live heap, the garbage collector does not run within so short a time. Around a RoundTripper that does nothing, the best
// round counts, in CPU time, with the garbage collector's: anything above that is the machine's doing.
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"net/http"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/nosidecar/mesh/bench"
)

// warmUp is how long a side runs in a round before it counts.
const warmUp = 15 * time.Millisecond

func main() {
	bench.ServeProcess()
	mtls := flag.Bool("mtls", false, "only the comparison with mTLS on both ends")
	noNetwork := flag.Bool("layers", false, "only the comparison around a RoundTripper that does nothing")
	rounds := flag.Int("rounds", 121, "number of `rounds`")
	span := flag.Duration("time", 25*time.Millisecond, "how long each side runs in a round")
	heap := flag.Int("heap", 32, "live heap of each process in `MiB`, besides what it uses; 0 measures an idle program")
	flag.Parse()
	if flag.NArg() > 0 || *mtls && *noNetwork || *rounds < 1 || *span <= 0 || *heap < 0 {
		flag.Usage()
		os.Exit(2)
	}
	bench.Hold(*heap)
	fmt.Printf("%s, %s/%s, %d processors; %d rounds of %v for each side in turn; a live heap of %d MiB.\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), *rounds, *span, *heap)
	run := compare
	switch {
	case *mtls:
		run = mutuals
	case *noNetwork:
		run = layers
	}
	if err := run(*rounds, *span); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
	if len(quoted) > 0 {
		quoted.print()
	}
}

func compare(rounds int, span time.Duration) error {
	if err := layers(rounds, span); err != nil {
		return err
	}
	fmt.Print("\nOver loopback, in calls a second and CPU time a call, each with its ratio to a bare http.Client:\n\n" +
		"| protocol | in flight | | calls/s | | CPU, both ends | | CPU, client alone | |\n" +
		"|---|--:|---|--:|--:|--:|--:|--:|--:|\n")
	for _, protocol := range bench.Protocols {
		for _, inFlight := range []int{8, 64} {
			if err := loopback(protocol, inFlight, rounds, span); err != nil {
				return fmt.Errorf("%s, %d in flight: %w", protocol, inFlight, err)
			}
		}
	}
	return mutuals(rounds, span)
}

func mutuals(rounds int, span time.Duration) error {
	fmt.Print("\nOver loopback with mTLS and HTTP/2, the whole mesh on both ends, with PeerAuthentication and AuthorizationPolicy:\n\n" +
		"| in flight | | calls/s | | CPU, both ends | |\n|--:|---|--:|--:|--:|--:|\n")
	for _, inFlight := range []int{8, 64} {
		if err := mutual(inFlight, rounds, span); err != nil {
			return fmt.Errorf("mTLS, %d in flight: %w", inFlight, err)
		}
	}
	fmt.Print("\nThe same with gRPC:\n\n| | in flight | | calls/s | | CPU, both ends | |\n|---|--:|---|--:|--:|--:|--:|\n")
	for _, inFlight := range []int{8, 64} {
		if err := mutualGRPC(inFlight, rounds, span); err != nil {
			return fmt.Errorf("gRPC, %d in flight: %w", inFlight, err)
		}
	}
	return nil
}

// mutualGRPC prints the rows of gRPC for a number of calls in flight.
func mutualGRPC(inFlight, rounds int, span time.Duration) error {
	callers, closeAll, err := bench.MutualGRPCCallers()
	if err != nil {
		return err
	}
	defer closeAll()
	for _, kind := range []struct {
		name   string
		worker func(*bench.GRPCCaller, context.Context) (func() error, error)
	}{
		{"unary", (*bench.GRPCCaller).Unary},
		{"stream of 1 message", (*bench.GRPCCaller).Streams},
		{"message of an open stream", (*bench.GRPCCaller).Messages},
	} {
		rate, cpu, err := inTurn(len(callers), rounds, func(i int) (float64, float64, error) {
			result, err := bench.LoadFor(inFlight, warmUp, span, func(ctx context.Context) (func() error, error) {
				return kind.worker(&callers[i], ctx)
			})
			return result.PerSecond(), result.CPUPerCall(), err
		})
		if err != nil {
			return err
		}
		for i, c := range callers {
			fmt.Printf("| %s | %d | %s | %.0f | %s | %.1f µs | %s |\n", kind.name, inFlight, c.Name,
				median(rate[i]), ratio(rate[i], rate[0]), median(cpu[i]), ratio(cpu[i], cpu[0]))
			quoted.put("gRPC, "+kind.name, inFlight, c.Name, rate[i], rate[0], nil, nil, cpu[i], cpu[0])
		}
	}
	return nil
}

// mutual prints the rows of mTLS for a number of calls in flight.
func mutual(inFlight, rounds int, span time.Duration) error {
	callers, err := bench.MutualCallers()
	if err != nil {
		return err
	}
	for _, c := range callers {
		defer c.Close()
	}
	rate, cpu, err := inTurn(len(callers), rounds, func(i int) (float64, float64, error) {
		result, err := bench.LoadFor(inFlight, warmUp, span, callers[i].Worker())
		return result.PerSecond(), result.CPUPerCall(), err
	})
	if err != nil {
		return err
	}
	for i, c := range callers {
		fmt.Printf("| %d | %s | %.0f | %s | %.1f µs | %s |\n", inFlight, c.Name,
			median(rate[i]), ratio(rate[i], rate[0]), median(cpu[i]), ratio(cpu[i], cpu[0]))
		quoted.put("HTTP/2", inFlight, c.Name, rate[i], rate[0], nil, nil, cpu[i], cpu[0])
	}
	return nil
}

// layers prints the table of what is added to a RoundTripper that does nothing.
//
// Fewer and longer rounds than those over the loopback take as much time, and the garbage collector runs in each.
func layers(rounds int, span time.Duration) error {
	rounds, span = (rounds+3)/4, 4*span
	peers := append([]bench.Peer{bench.Bare}, bench.Layers()...)
	transports := make([]http.RoundTripper, len(peers))
	for i, p := range peers {
		transports[i] = p.Wrap(bench.Noop{})
	}
	times, allocs, err := inTurn(len(peers), rounds, func(i int) (float64, float64, error) {
		return perCall(transports[i], span)
	})
	if err != nil {
		return err
	}
	fmt.Print("\nAround a RoundTripper that does nothing:\n\n" +
		"| | CPU a call | beyond bare | allocations | beyond bare |\n|---|--:|--:|--:|--:|\n")
	for i, p := range peers {
		fmt.Printf("| %s | %.0f ns | %+.0f ns | %.0f | %+.0f |\n", p.Name,
			slices.Min(times[i]), slices.Min(times[i])-slices.Min(times[0]),
			slices.Min(allocs[i]), slices.Min(allocs[i])-slices.Min(allocs[0]))
	}
	return nil
}

// perCall calls rt for a while and returns the CPU time in nanoseconds and the allocations of a call.
func perCall(rt http.RoundTripper, span time.Duration) (ns, allocs float64, err error) {
	req, err := http.NewRequest(http.MethodGet, "http://user-service/users/42", nil)
	if err != nil {
		return 0, 0, err
	}
	buf := make([]byte, 512)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	calls, start, cpu := 0, time.Now(), bench.CPUTime()
	for time.Since(start) < span {
		for range 1000 {
			if err := bench.Call(rt, req, buf); err != nil {
				return 0, 0, err
			}
		}
		calls += 1000
	}
	cpu = bench.CPUTime() - cpu
	runtime.ReadMemStats(&after)
	return float64(cpu.Nanoseconds()) / float64(calls), float64(after.Mallocs-before.Mallocs) / float64(calls), nil
}

// loopback prints the rows of a protocol and a number of calls in flight.
func loopback(protocol bench.Protocol, inFlight, rounds int, span time.Duration) error {
	names, rate, both, err := throughput(bench.NewServer, protocol, inFlight, rounds, span)
	if err != nil {
		return err
	}
	_, _, client, err := throughput(bench.StartServer, protocol, inFlight, rounds, span)
	if err != nil {
		return err
	}
	for i, name := range names {
		fmt.Printf("| %s | %d | %s | %.0f | %s | %.1f µs | %s | %.1f µs | %s |\n", protocol, inFlight, name,
			median(rate[i]), ratio(rate[i], rate[0]), median(both[i]), ratio(both[i], both[0]),
			median(client[i]), ratio(client[i], client[0]))
		quoted.put(string(protocol), inFlight, name, rate[i], rate[0], client[i], client[0], both[i], both[0])
	}
	return nil
}

// throughput returns, for each caller and round, the calls a second and the CPU time of a call in this process.
func throughput(start func(bench.Protocol) (*bench.Server, error), protocol bench.Protocol, inFlight, rounds int,
	span time.Duration) (names []string, rate, cpu [][]float64, err error) {
	server, err := start(protocol)
	if err != nil {
		return nil, nil, nil, err
	}
	defer server.Close()
	callers, err := bench.Callers(server)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, c := range callers {
		defer c.Close()
		names = append(names, c.Name)
	}
	rate, cpu, err = inTurn(len(callers), rounds, func(i int) (float64, float64, error) {
		result, err := bench.LoadFor(inFlight, warmUp, span, callers[i].Worker())
		return result.PerSecond(), result.CPUPerCall(), err
	})
	return names, rate, cpu, err
}

// inTurn measures each of n sides in each round, and one round more that does not count. A round begins one side further
// than the last, so that no side always runs after the same one.
func inTurn(n, rounds int, measure func(int) (float64, float64, error)) (first, second [][]float64, err error) {
	first, second = make([][]float64, n), make([][]float64, n)
	for round := range rounds + 1 {
		for k := range n {
			i := (round + k) % n
			runtime.GC() // what one side leaves is not for the next to clean up
			a, b, err := measure(i)
			if err != nil {
				return nil, nil, err
			}
			if round > 0 {
				first[i], second[i] = append(first[i], a), append(second[i], b)
			}
		}
	}
	return first, second, nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

// ratios returns the ratios within rounds, the least first.
func ratios(a, b []float64) []float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i] / b[i]
	}
	slices.Sort(ratios)
	return ratios
}

// ratio returns the median of the ratios within rounds, with its confidence interval of 95%: how many rounds lie below the true median
// is binomial, with a standard deviation of half the square root of their number.
func ratio(a, b []float64) string {
	all := ratios(a, b)
	n := float64(len(all))
	low := max(0, int((n-1.96*math.Sqrt(n))/2))
	return fmt.Sprintf("%.2f (%.2f to %.2f)", median(all), all[low], all[len(all)-1-low])
}
