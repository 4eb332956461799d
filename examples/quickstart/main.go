// Command quickstart shows what a service mesh does, with real servers, real documents and no sidecar.
//
// It starts HTTP servers on 127.0.0.1: several endpoints and versions of a few services, some of which fail or hang. Each
// scene loads documents from the folder mesh.d into a mesh, calls a service by its name, and prints what was measured next
// to what the documents specify. If the two differ, the program says so and exits with status 1.
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
	// The limit is for a run that hangs.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()

	fmt.Print("Real HTTP servers on 127.0.0.1, called by name through a mesh in this process.\n" +
		"The documents are in examples/quickstart/mesh.d.\n\n")
	start := time.Now()
	scenes := program()
	for _, s := range scenes {
		s.begin(ctx) // they run concurrently, each with its own servers
	}
	matched := true
	for i, s := range scenes {
		s.wait()
		fmt.Printf("%d. %s\n", i+1, s)
		matched = matched && s.matched()
	}
	printFindings(scenes)
	fmt.Printf("\n%d scenes in %.1fs.\n", len(scenes), time.Since(start).Seconds())
	if !matched {
		fmt.Println("Something DID NOT MATCH the documents.")
		os.Exit(1)
	}
	fmt.Println("Everything matched the documents.")
}

// program returns the scenes, in the order in which they are printed.
func program() []*scene {
	return []*scene{
		// routing.go: which version of a service gets a call.
		{
			title:     "Traffic split",
			documents: []string{"01-istio-routing-destination-retry-timeout.yaml"},
			story:     "Nine calls in ten go to v1 and one in ten to v2; a call with the header \"version: v2\" goes to v2.",
			play:      trafficSplit,
		},
		{
			title:     "A canary, completed while calls are made",
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
			story:     "v1 serves, and v2 gets a copy of each call. This v2 always fails, and no caller notices.",
			play:      mirroring,
		},
		{
			title:     "Sticky sessions",
			documents: []string{"10-complete-setup.yaml"},
			story:     "Each user, identified by the header x-user-id, stays on one endpoint. One call in 1,000 is delayed by 5s.",
			play:      stickySessions,
		},

		// identity.go: who may call whom.
		{
			title:     "Identity and authorization",
			documents: []string{"10-complete-setup.yaml"},
			story:     "Services accept only mTLS, and user-service accepts only GET and POST, and only from order-service.",
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
			story:     "Three retries turn a call into four requests, just when servers are overloaded. A budget limits them to 20%.",
			play:      retryBudget,
		},
		{
			title:     "Ejection",
			documents: []string{"08-circuit-breaking.yaml"},
			story:     "An endpoint that fails 5 times in a row gets no calls for 30 seconds.",
			play:      ejection,
		},
		{
			title:     "Ejection, and a second chance",
			documents: []string{"22-ejection-in-seconds.yaml"},
			story:     "The same for one second. The endpoint recovers meanwhile, and is readmitted.",
			play:      readmission,
		},

		// limits.go: timeouts, pools and faults.
		{
			title:     "Timeouts",
			documents: []string{"23-short-timeouts.yaml"},
			story:     "order-service: a try that hangs is abandoned after 1s and repeated elsewhere. payment-service: a call ends after 300ms.",
			play:      timeouts,
		},
		{
			title:     "Connection pool",
			documents: []string{"24-small-pool.yaml"},
			story:     "One call is served, one waits, and further calls are refused at once instead of piling up.",
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

// mesh makes a mesh that is closed at the end of the scene. Your program would name a folder with mesh.WithPolicyDir and
// find endpoints with DNS; here the documents are embedded, and the endpoints are registered by hand.
func (s *scene) mesh(options ...mesh.Option) *mesh.Mesh {
	options = append(options,
		mesh.WithPolicy(sources(s.documents...)...),
		mesh.WithDiscovery(&s.registry),
		mesh.WithObserver(mesh.Observer{PolicyLoad: func(load mesh.PolicyLoad) {
			s.findings = append(s.findings, load.Findings...)
		}}),
		mesh.WithLogger(slog.New(slog.DiscardHandler)), // the scenes report what happens
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

// sources returns documents of the folder. They are not loaded all at once, because some of them contradict each other
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
