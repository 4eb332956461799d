package accesslog_test

import (
	"context"
	"log"
	"os"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/accesslog"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/telemetry/cel"
)

// What failed or took long is logged, as far as Telemetry documents do not say otherwise.
func ExampleNew() {
	access, err := accesslog.New(accesslog.Config{
		Writer: os.Stdout,
		Filter: accesslog.Filter{Code: 500, Duration: time.Second, Flags: ^mesh.Flags(0)},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer access.Close() // after the mesh

	m, err := mesh.New(context.Background(),
		mesh.WithObserver(access.Observer()),
		mesh.WithWorkload(policy.Workload{Expressions: cel.Expressions{}}),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	// Output:
}
