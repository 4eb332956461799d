package mesh_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// hang makes a request that hangs in the failing endpoint, and returns what makes the caller give up.
func (a *accruing) hang(t *testing.T) (giveUp func()) {
	t.Helper()
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://api/hang", nil)
		before := a.bad.seen.Load()
		go func() {
			if resp, err := a.client.Do(req); err == nil {
				resp.Body.Close()
			}
		}()
		synctest.Wait()
		if a.bad.seen.Load() > before {
			return cancel
		}
		cancel() // it went to the other one
	}
	t.Fatal("of 100 requests, none came to the failing endpoint")
	return nil
}

// TestLinkerd_FailureAccrual_ATrialHangs: a call that hangs keeps an endpoint out for no longer than one that fails.
func TestLinkerd_FailureAccrual_ATrialHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccruing(t, annotatedService(accrues)+destinationRule("loadBalancer: {simple: ROUND_ROBIN}"))
		a.want(t, "at first", 50, 2, 2)
		advance(10 * time.Second)
		defer a.hang(t)()
		advance(19 * time.Second)
		a.want(t, "on trial", 50, 0, 0)
		advance(time.Second)
		giveUp := a.hang(t)
		a.want(t, "on trial again", 50, 0, 0)
		advance(29 * time.Second)
		a.want(t, "on trial again, and nearly too long", 50, 0, 0)
		giveUp()
		synctest.Wait()
		a.want(t, "after the second caller gave up", 50, 1, 1)
		advance(29 * time.Second)
		a.want(t, "after a failure", 50, 0, 0)
		a.bad.fails.Store(false)
		advance(time.Second)
		if seen, failed := a.calls(t, 50); seen < 10 || failed > 0 {
			t.Errorf("recovered: the endpoint got %d of 50 calls, and %d failed", seen, failed)
		}
	})
}

// TestLinkerd_FailureAccrual_CallersThatGiveUp: they are no failures of the endpoint.
func TestLinkerd_FailureAccrual_CallersThatGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccruing(t, annotatedService(accrues)+destinationRule("loadBalancer: {simple: ROUND_ROBIN}"))
		for range 5 {
			a.hang(t)()
			synctest.Wait()
		}
		a.want(t, "after callers gave up", 50, 2, 2)
	})
}

// TestLinkerd_FailureAccrual_Retries: a retry avoids the endpoint that is out. If none is left, the call fails at once.
func TestLinkerd_FailureAccrual_Retries(t *testing.T) {
	const retried = ", retry.linkerd.io/http: 5xx, retry.linkerd.io/limit: '5'"
	synctest.Test(t, func(t *testing.T) {
		a := newAccruing(t, annotatedService(accrues+retried))
		if seen, failed := a.calls(t, 50); seen != 2 || failed != 0 {
			t.Errorf("the endpoint got %d calls, and %d failed", seen, failed)
		}
		advance(10 * time.Second)
		if seen, failed := a.calls(t, 50); seen != 1 || failed != 0 {
			t.Errorf("after the penalty, the endpoint got %d calls, and %d failed", seen, failed)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var bad failing
		bad.fails.Store(true)
		f.Registry.Set("api", f.Add(t, bad.ServeHTTP))
		c := f.Mesh(t, annotatedService(accrues+retried)).Client()
		began := time.Now()
		for i := range 2 {
			if _, err := try(c, "http://api/"); !errors.Is(err, balancer.ErrNoHealthy) || bad.seen.Load() != 2 || time.Since(began) != 0 {
				t.Errorf("call %d: %v after %v, and %d calls arrived", i, err, time.Since(began), bad.seen.Load())
			}
		}
	})
}

// TestLinkerd_FailureAccrual_EndpointsComeAndGo: an endpoint that is removed while it is out or on trial begins anew when it is back.
func TestLinkerd_FailureAccrual_EndpointsComeAndGo(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after time.Duration
		trial bool
	}{
		{"out", 0, false}, {"due", 10 * time.Second, false}, {"on trial", 10 * time.Second, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAccruing(t, annotatedService(accrues)+destinationRule("loadBalancer: {simple: ROUND_ROBIN}"))
				a.want(t, "at first", 50, 2, 2)
				advance(tt.after)
				if tt.trial {
					defer a.hang(t)()
				}
				all := a.endpoints
				a.registry.Set("api", all[1])
				synctest.Wait()
				a.want(t, "removed", 50, 0, 0)
				a.registry.Set("api", all...)
				synctest.Wait()
				a.want(t, "back", 50, 2, 2)
				advance(10 * time.Second)
				a.want(t, "after the penalty", 50, 1, 1)
				advance(20 * time.Second)
				a.bad.fails.Store(false)
				if seen, failed := a.calls(t, 50); seen < 10 || failed > 0 {
					t.Errorf("recovered: the endpoint got %d of 50 calls, and %d failed", seen, failed)
				}
			})
		})
	}
}

// TestLinkerd_FailureAccrual_Reload: settings that change while an endpoint is out let it in, and it is never lost.
func TestLinkerd_FailureAccrual_Reload(t *testing.T) {
	longer := strings.Replace(accrues, "min-penalty: 10s", "min-penalty: 15s", 1)
	for _, tt := range []struct{ name, documents string }{
		{"another penalty", annotatedService(longer)},
		{"none", annotatedService("")},
		{"outlierDetection", annotatedService(accrues) + destinationRule("outlierDetection: {consecutive5xxErrors: 5}")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAccruing(t, annotatedService(accrues)+destinationRule("loadBalancer: {simple: ROUND_ROBIN}"))
				a.want(t, "at first", 50, 2, 2)
				advance(10 * time.Second)
				giveUp := a.hang(t) // in the cluster of before, which it keeps
				if err := a.mesh.Apply(source(tt.documents)); err != nil {
					t.Fatal(err)
				}
				a.bad.fails.Store(false)
				if seen, failed := a.calls(t, 50); seen < 10 || failed > 0 {
					t.Errorf("after the reload, the endpoint got %d of 50 calls, and %d failed", seen, failed)
				}
				giveUp()
				synctest.Wait()
				if err := a.mesh.Apply(source(annotatedService(accrues))); err != nil {
					t.Fatal(err)
				}
				if seen, failed := a.calls(t, 50); seen < 10 || failed > 0 {
					t.Errorf("after another reload, the endpoint got %d of 50 calls, and %d failed", seen, failed)
				}
				a.bad.fails.Store(true)
				a.want(t, "failing again", 50, 2, 2)
			})
		})
	}
}
