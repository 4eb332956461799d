package mesh_test

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/policy"
)

// TestPlaintextToAnEndpointOfTLS: the error of a call in plaintext that an endpoint cut off says that it was plaintext, and why.
func TestPlaintextToAnEndpointOfTLS(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	payment := w.serve(t, w.member(t, "payment", strict), "payment", whoCalls)
	entry := func(location string) string {
		return fmt.Sprintf("\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: payment}\nspec:\n"+
			"  hosts: [payment.default.svc.cluster.local]\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP, targetPort: %d}]\n"+
			"  endpoints: [{address: %s, serviceAccount: payment}]\n%s", payment.Port, payment.Address, location)
	}
	const external, maybe = "  location: MESH_EXTERNAL\n", "and the endpoint may take TLS only"
	rule := "\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: payment}\nspec: {host: payment, trafficPolicy: {tls: {mode: DISABLE}}}\n"
	noRetries := "---" + strings.Replace(yamlOf("payment"), "http: [{", "http: [{retries: {attempts: 0}, ", 1)
	for _, test := range []struct {
		name, documents string
		anonymous       bool
		want            []string
	}{
		{"no location", strict + "---" + entry(""), false, []string{"it was sent plaintext, as ServiceEntry default/payment has no location", "write MESH_INTERNAL"}},
		{"no location, one attempt", strict + "---" + entry("") + noRetries, false, []string{"ServiceEntry default/payment has no location"}},
		{"no location, no identity", entry(""), true, []string{"ServiceEntry default/payment has no location"}},
		{"external", strict + "---" + entry(external), false, []string{"as ServiceEntry default/payment is MESH_EXTERNAL", maybe}},
		{"external, no identity", entry(external), true, nil},
		{"no identity", entry("  location: MESH_INTERNAL\n"), true, []string{"as this process has no identity, for which there is mesh.WithIdentity", maybe}},
		{"no identity, no label", yamlOf("payment"), true, nil},
		{"a rule", strict + "---" + rule, false, []string{"as its DestinationRule says DISABLE", maybe}},
		{"nothing said", yamlOf("payment"), false, []string{"no PeerAuthentication has it STRICT, and it lacks the label security.istio.io/tlsMode"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			caller := func() *mesh.Mesh {
				if test.anonymous {
					return newMesh(t, test.documents, mesh.WithDiscovery(&w.registry))
				}
				return w.member(t, "order", test.documents, mesh.WithWorkload(policy.Workload{}))
			}()
			_, err := try(caller.Client(), "http://payment/")
			if err == nil {
				t.Fatal("plaintext was taken")
			}
			for _, want := range test.want {
				if strings.Count(err.Error(), want) != 1 {
					t.Errorf("the error is %v, want %q in it", err, want)
				}
			}
			if test.want == nil && strings.Contains(err.Error(), "plaintext") {
				t.Errorf("the error is %v, want nothing of plaintext", err)
			}
			var failure *mesh.Error
			if !errors.As(err, &failure) || failure.Layer != "endpoint" || failure.Flags&mesh.FlagConnectionTerminated == 0 {
				t.Errorf("the error is %+v, want that of a connection that the endpoint closed", failure)
			}
		})
	}
	internal := w.member(t, "order", strict+"---"+entry("  location: MESH_INTERNAL\n"))
	if a := get(t, internal.Client(), "http://payment/"); a.status != http.StatusOK {
		t.Errorf("with a location: %d", a.status)
	}
}

// TestHintsAboutTLS: a handshake that fails because of how the service is served or called says so.
func TestHintsAboutTLS(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	w.serve(t, w.member(t, "payment", strict), "payment", whoCalls)
	bare := serve(t, says("hello"))
	bare.ServiceAccount = "bare"
	w.registry.Set("bare", bare)
	secure := httptest.NewUnstartedServer(says("hello"))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	w.registry.Set("public", endpointOf(t, secure.Listener.Addr().String()))
	client := w.member(t, "order", strict).Client()
	const served, called = "is it behind Mesh.Listen or a sidecar?", "call it by a URL with http"
	for url, want := range map[string]string{"http://bare/": served, "https://payment/": called, "https://public/": ""} {
		_, err := try(client, url)
		if err == nil {
			t.Errorf("%s was answered", url)
			continue
		}
		for _, hint := range []string{served, called} {
			if n := strings.Count(err.Error(), hint); n != 0 && hint != want || n != 1 && hint == want {
				t.Errorf("%s: the error is %v, want the hint %q", url, err, want)
			}
		}
	}
}
