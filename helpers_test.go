package mesh_test

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// TestMain fails the run if anything of the mesh, or of its connections, is left running at its end.
func TestMain(m *testing.M) {
	if description := os.Getenv(processVariable); description != "" { // process_test.go
		if err := beProcess(description); err != nil {
			log.Fatal(err)
		}
		os.Exit(0)
	}
	os.Exit(leak.Run(m))
}

// noLeaks checks, when the test is over and everything it started was closed, that nothing is left running. It is
// called first.
func noLeaks(t *testing.T) {
	t.Helper()
	leak.Check(t)
}

// serve starts a real HTTP server on the loopback and returns it as an endpoint.
func serve(t testing.TB, h http.HandlerFunc) discovery.Endpoint {
	t.Helper()
	return meshtest.Serve(t, h)
}

func endpointOf(t testing.TB, address string) discovery.Endpoint {
	t.Helper()
	return meshtest.EndpointOf(t, address)
}

func labeled(e discovery.Endpoint, key, value string) discovery.Endpoint {
	e.Labels = map[string]string{key: value}
	return e
}

// newMesh makes a mesh with the documents. It is closed at the end of the test.
func newMesh(t testing.TB, documents string, opts ...mesh.Option) *mesh.Mesh {
	t.Helper()
	return meshtest.New(t, documents, opts...)
}

// answer is the result of a call.
type answer struct {
	status int
	body   string
	header http.Header
	resp   *http.Response
}

func get(t testing.TB, c *http.Client, url string, header ...string) answer {
	t.Helper()
	a, err := try(c, url, header...)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return a
}

func try(c *http.Client, url string, header ...string) (answer, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else {
			req.Header.Add(header[i], header[i+1])
		}
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, string(body), resp.Header, resp}, err
}

// says answers every request with text.
func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text) }
}

// fails answers every request with status.
func fails(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) }
}

// readSeed returns a document file of the seed.
func readSeed(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile("policy/testdata/seed/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(data))
}

// between checks a share that was measured.
func between(t testing.TB, what string, got, low, high int) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s: %d, want %d to %d", what, got, low, high)
	}
}

// advance lets time pass, in a synctest bubble.
func advance(d time.Duration) { time.Sleep(d) }
