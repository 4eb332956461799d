package servers

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Jaeger is a Jaeger with its storage in memory.
type Jaeger struct {
	OTLPGRPC string // the address that takes OTLP over gRPC
	Zipkin   string // the URL that takes spans of Zipkin
	Query    string // the URL of the page and the API
}

// StartJaeger starts a Jaeger, which is built if this machine has not built it before.
func StartJaeger(t testing.TB) *Jaeger {
	t.Helper()
	path, err := jaegerPath()
	if err != nil {
		t.Fatal(err)
	}
	j := new(Jaeger)
	start(t, func() (*exec.Cmd, string) {
		at := free(t, 8)
		cmd := exec.Command(path,
			"--admin.http.host-port="+at[0], "--collector.otlp.grpc.host-port="+at[1], "--collector.otlp.http.host-port="+at[2],
			"--collector.grpc-server.host-port="+at[3], "--collector.http-server.host-port="+at[4], "--collector.zipkin.host-port="+at[5],
			"--query.http-server.host-port="+at[6], "--query.grpc-server.host-port="+at[7], "--log-level=error")
		cmd.Env = append(os.Environ(), "SPAN_STORAGE_TYPE=memory", "OTEL_TRACES_SAMPLER=always_off") // of its own traces
		j.OTLPGRPC, j.Zipkin, j.Query = at[1], "http://"+at[5]+"/api/v2/spans", "http://"+at[6]
		return cmd, j.Query + "/api/services"
	})
	return j
}

var jaegerPath = sync.OnceValues(func() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	return build(filepath.Join(filepath.Dir(file), "..", "jaeger"), "github.com/jaegertracing/jaeger/cmd/all-in-one", "jaeger")
})

// build returns the path of a program that the module in dir builds: from the user's cache, or built now, which takes minutes.
func build(dir, pkg, name string) (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, file := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return "", err
		}
		hash.Write(data)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "nosidecar-mesh", fmt.Sprintf("%s-%x", name, hash.Sum(nil)[:8]))
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil { // tests of other packages wait, rather than build it too
		return "", err
	}
	path := filepath.Join(cache, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path+".new", pkg)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s in %s: %w\n%s", pkg, dir, err, out)
	}
	return path, os.Rename(path+".new", path)
}

// Span is a span as Jaeger has it.
type Span struct {
	ID, Parent string // Parent is "" for a root
	Trace      string
	Service    string
	Name       string
	Start      int64 // microseconds
	Tags       map[string]string
	Events     []map[string]string // the fields of its logs
}

// Trace returns the spans of a trace once there are n of them, in the order in which they began. It waits for them.
func (j *Jaeger) Trace(t testing.TB, id string, n int) []Span {
	t.Helper()
	var spans []Span
	var err error
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if spans, err = j.trace(id); err == nil && len(spans) >= n {
			return spans
		}
	}
	t.Fatalf("trace %s has %d spans, want %d: %v: %v", id, len(spans), n, err, spans)
	return nil
}

func (j *Jaeger) trace(id string) ([]Span, error) {
	data, err := get(context.Background(), j.Query+"/api/traces/"+id)
	if err != nil {
		return nil, err
	}
	type tags []struct {
		Key   string
		Value any
	}
	var answer struct {
		Data []struct {
			Spans []struct {
				TraceID, SpanID, OperationName, ProcessID string
				StartTime                                 int64
				References                                []struct{ RefType, SpanID string }
				Tags                                      tags
				Logs                                      []struct{ Fields tags }
			}
			Processes map[string]struct{ ServiceName string }
		}
	}
	if err := json.Unmarshal(data, &answer); err != nil || len(answer.Data) == 0 {
		return nil, err
	}
	text := func(all tags) map[string]string {
		m := map[string]string{}
		for _, tag := range all {
			m[tag.Key] = fmt.Sprint(tag.Value)
		}
		return m
	}
	var spans []Span
	for _, s := range answer.Data[0].Spans {
		span := Span{ID: s.SpanID, Trace: s.TraceID, Service: answer.Data[0].Processes[s.ProcessID].ServiceName, Name: s.OperationName,
			Start: s.StartTime, Tags: text(s.Tags)}
		for _, r := range s.References {
			if r.RefType == "CHILD_OF" {
				span.Parent = r.SpanID
			}
		}
		for _, l := range s.Logs {
			span.Events = append(span.Events, text(l.Fields))
		}
		spans = append(spans, span)
	}
	slices.SortStableFunc(spans, func(a, b Span) int { return int(a.Start - b.Start) })
	return spans, nil
}
