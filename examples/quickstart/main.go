// Command quickstart shows what a service mesh does, with real servers, real documents and no sidecar.
//
// It starts HTTP servers on 127.0.0.1: several endpoints and versions of a few services, some of which fail or hang. In
// each scene it loads documents out of the folder mesh.d into a mesh, calls a service by its name, and prints what became
// of the calls beside what the documents ask for. If the two differ it says so, and exits with status 1.
//
//	go run ./examples/quickstart
package main

import (
	"context"
	"embed"
	"fmt"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/policy"
)

func main() {
	log.SetFlags(0)
	// Nothing here takes nearly as long, even on a busy machine. What hangs ends then, and fails.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()

	fmt.Print("Real HTTP servers on 127.0.0.1, called by name through a mesh in this process.\n" +
		"What is asked for is in examples/quickstart/mesh.d.\n\n")
	start := time.Now()
	scenes := program()
	for _, s := range scenes {
		s.begin(ctx) // they play at the same time, each with servers of its own
	}
	asked := true
	for i, s := range scenes {
		s.wait()
		fmt.Printf("%d. %s\n", i+1, s)
		asked = asked && s.asked()
	}
	printFindings(scenes)
	fmt.Printf("\n%d scenes in %.1fs.\n", len(scenes), time.Since(start).Seconds())
	if !asked {
		fmt.Println("Some of it was NOT AS ASKED.")
		os.Exit(1)
	}
	fmt.Println("All of it was as the documents ask.")
}

// program returns the scenes, in the order in which they are told.
func program() []*scene {
	return []*scene{
		// routing.go: which version of a service gets a call.
		{
			title:     "Traffic split",
			documents: []string{"01-istio-routing-destination-retry-timeout.yaml"},
			story:     "Nine calls in ten go to v1 and one in ten to v2; a call that says \"version: v2\" gets v2.",
			play:      trafficSplit,
		},
		{
			title:     "A canary, finished while calls are made",
			documents: []string{"03-canary.yaml", "20-versions-of-myapp.yaml"},
			story:     "v2 gets 5 calls in 100. Then 21-canary-finished.yaml is applied, and it gets them all.",
			play:      canary,
		},
		{
			title:     "A/B testing by header",
			documents: []string{"04-ab-testing.yaml", "20-versions-of-myapp.yaml"},
			story:     "Premium users get v2, everybody else v1.",
			play:      abTesting,
		},
		{
			title:     "Mirroring",
			documents: []string{"05-mirroring.yaml", "20-versions-of-myapp.yaml"},
			story:     "v1 serves, and v2 gets a copy of each call. This v2 only fails, and no caller notices.",
			play:      mirroring,
		},
		{
			title:     "Sticky sessions",
			documents: []string{"10-complete-setup.yaml"},
			story:     "Each user, told by the header x-user-id, stays on one endpoint. One call in 1,000 is delayed by 5s.",
			play:      stickySessions,
		},

		// identity.go: who may call whom.
		{
			title:     "Identity and authorization",
			documents: []string{"10-complete-setup.yaml"},
			story:     "Services talk mTLS only, and user-service takes GET and POST from order-service, nothing from others.",
			play:      identities,
		},

		// failures.go: what callers notice when servers fail.
		{
			title:     "Retries",
			documents: []string{"09-retries.yaml"},
			story:     "One endpoint of three always answers 503. A failed call is tried again, on another endpoint.",
			play:      retries,
		},
		{
			title:     "When everything fails: a retry budget",
			documents: []string{"01-istio-routing-destination-retry-timeout.yaml"},
			story:     "Three retries make four requests of a call, just when servers need rest. A budget bounds them to 20%.",
			play:      retryBudget,
		},
		{
			title:     "Ejection",
			documents: []string{"08-circuit-breaking.yaml"},
			story:     "An endpoint that failed 5 times in a row gets no more calls for 30 seconds.",
			play:      ejection,
		},
		{
			title:     "Ejection, and a second chance",
			documents: []string{"22-ejection-in-seconds.yaml"},
			story:     "The same for one second. The endpoint recovers meanwhile, and is readmitted.",
			play:      readmission,
		},

		// limits.go: what callers are spared, and what they are not.
		{
			title:     "Timeouts",
			documents: []string{"23-short-timeouts.yaml"},
			story:     "order-service: a try that hangs is given up after 1s and made elsewhere. payment-service: a call ends after 300ms.",
			play:      timeouts,
		},
		{
			title:     "Connection pool",
			documents: []string{"24-small-pool.yaml"},
			story:     "One call is served, one waits, and what comes on top is refused at once instead of piling up.",
			play:      connectionPool,
		},
		{
			title:     "Faults on purpose",
			documents: []string{"25-faults.yaml"},
			story:     "One call in ten is delayed by 20ms, one in five is answered with 503 and never sent.",
			play:      faults,
		},
	}
}

// mesh makes the mesh of a scene, which lives as long as the scene does. A program of yours would name a folder with
// mesh.WithPolicyDir and leave the endpoints to the domain name system; here they are embedded, and registered by hand.
func (s *scene) mesh(options ...mesh.Option) *mesh.Mesh {
	options = append(options,
		mesh.WithPolicy(sources(s.documents...)...),
		mesh.WithDiscovery(&s.registry),
		mesh.WithObserver(mesh.Observer{PolicyLoad: func(load mesh.PolicyLoad) {
			s.findings = append(s.findings, load.Findings...)
		}}),
		mesh.WithLogger(slog.New(slog.DiscardHandler)), // the scenes tell what happens
	)
	m, err := mesh.New(s.ctx, options...)
	if err != nil {
		log.Fatal(err) // every mistake in the documents, with file, line and field
	}
	s.meshes = append(s.meshes, m)
	return m
}

//go:embed mesh.d
var folder embed.FS

// sources returns documents of the folder. They are not loaded all at once, since several of them say different things
// about the same service.
func sources(names ...string) []policy.Source {
	var sources []policy.Source
	for _, name := range names {
		path := "mesh.d/" + name
		data, err := folder.ReadFile(path)
		if err != nil {
			log.Fatal(err)
		}
		sources = append(sources, policy.Source{Name: path, Data: data})
	}
	return sources
}
