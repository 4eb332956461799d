package engine

import (
	"context"
	"errors"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy/route"
)

// locate determines where the call goes: it sets cluster, or leaves it nil if the host is outside the mesh.
func (c *Call) locate(wait context.Context, req *Request) error {
	c.ownTLS = req.Scheme == "https"
	for {
		v := c.engine.view.Load()
		c.host = v.hosts.lookup(req)
		req.Port = c.host.port
		// If no document names the host, it belongs to the mesh only if discovery knows it. A copy belongs where its original does.
		certain := c.kind == Copied || c.host.Known
		if !certain {
			if c.host.outside(c.start) {
				return c.leaveMesh()
			}
			if c.kind == Routed && c.host.Routes != nil { // a wildcard routes the host, if it is a service
				if current, err := c.ask(wait, v, req); err != nil || c.outside {
					return err
				} else if !current {
					continue
				}
				certain = true
			}
		}
		if c.kind == Routed {
			if err := c.route(v, req); err != nil {
				return err
			}
		}
		if current, err := c.enter(v, req); err != nil {
			return err
		} else if !current {
			c.forget() // the documents changed meanwhile; nothing has been sent yet, so start over with the new ones
			continue
		}
		first := !c.cluster.answered.Load()
		if !certain {
			if err := c.confirm(wait); err != nil || c.cluster == nil {
				return err
			}
		}
		if first && c.overtaken(wait, v) {
			continue
		}
		if c.cluster.unusable {
			return c.cluster.whyUnusable()
		}
		return nil
	}
}

// overtaken waits for the first endpoints of the call's cluster. If v is no longer the view in force then, the call leaves the
// cluster: documents may arrive with the endpoints, since a feed can learn from discovery which namespaces calls need.
func (c *Call) overtaken(wait context.Context, v *view) bool {
	if c.await(wait); c.engine.view.Load() == v {
		return false
	}
	c.cluster.leave()
	c.forget()
	return true
}

// forget forgets where the call goes under an earlier view.
func (c *Call) forget() { c.cluster, c.target, c.rule, c.backend = nil, nil, nil, nil }

// ask finds out from discovery whether the host is a service. If it is not, the call leaves the mesh. current is false if the
// documents have changed.
func (c *Call) ask(wait context.Context, v *view, req *Request) (current bool, err error) {
	if current, err = c.enter(v, req); err != nil || !current {
		return false, err
	}
	if err = c.confirm(wait); err != nil || c.outside {
		return false, err
	}
	c.cluster.leave()
	c.forget()
	return c.engine.view.Load() == v, nil
}

// enter counts the call in the cluster of its target. current is false if the documents have changed.
func (c *Call) enter(v *view, req *Request) (current bool, err error) {
	usual := c.host.usualOf(c.rule, c.backend)
	cluster := usual.cluster(c.backend)
	if cluster == nil || c.backend == nil && cluster.target != c.host.resolve(req.Target) {
		return c.enterNew(v, req, usual)
	}
	if current = cluster.enter(c.start.read); current {
		c.cluster, c.target = cluster, &cluster.target
	}
	return current, nil
}

// enterNew is enter for a target that the host does not remember.
func (c *Call) enterNew(v *view, req *Request, usual *usual) (current bool, err error) {
	target := req.Target
	if c.backend != nil {
		target = c.backend.Target
	}
	target = c.host.resolve(target)
	cluster, current, err := c.engine.enter(v, target, c.start.read)
	if err != nil {
		tried := target
		c.target = &tried
		if _, refused := err.(*Refusal); !refused {
			err = refuse(LayerRoute, 0, err)
		}
	}
	if current {
		c.cluster, c.target = cluster, &cluster.target
		usual.keep(c.backend, cluster)
	}
	return current, err
}

// route picks the rule and its destination.
func (c *Call) route(v *view, req *Request) error {
	table := c.host.Routes
	if table == nil {
		table = v.plan.Defaults()
	}
	// The request is the caller's: routes match the original request, not the rewritten one.
	rule, match, ok := table.Match(&req.Request)
	if !ok {
		return prescribe(LayerRoute, FlagNoRoute, errNoRoute, AnswerNotFound)
	}
	c.rule, c.match, c.backend = rule, int32(match), rule.Pick(nil)
	if c.backend == nil {
		return prescribe(LayerRoute, 0, errRouteAnswers, AnswerRule)
	}
	return nil
}

// resolve fills in the host or the port, if the document left it to the request.
func (h *host) resolve(t route.Target) route.Target {
	if t.Host == "" {
		t.Host = h.Service.Host
	}
	if t.Port == 0 {
		t.Port = h.port
	}
	return t
}

// confirm waits until discovery has said whether it knows the host. If it does not, the call leaves the mesh.
func (c *Call) confirm(ctx context.Context) error {
	if c.cluster.confirmed.Load() {
		return nil
	}
	c.late = true
	err := c.cluster.wait(ctx)
	switch {
	case err == nil:
		c.cluster.confirmed.Store(true)
		return nil
	case errors.Is(err, discovery.ErrUnknownService):
		c.host.deny(time.Now(), err)
		c.engine.drop(c.cluster)
		c.cluster.leave()
		return c.leaveMesh()
	}
	return undiscovered(ctx, err)
}

// await waits for the first answer of discovery, within the timeout of the route. If there is none, the pick of an endpoint fails.
func (c *Call) await(ctx context.Context) {
	c.late = true
	start := time.Now()
	if c.rule != nil && c.rule.Route.Timeout > 0 {
		within, cancel := context.WithTimeout(ctx, c.rule.Route.Timeout)
		defer cancel()
		ctx = within
	}
	err := c.cluster.first(ctx)
	c.slow = err == errDiscoverySlow
	c.waited += time.Since(start)
}

// leaveMesh decides what happens to a call to a host outside the mesh.
func (c *Call) leaveMesh() error {
	c.rule, c.backend, c.cluster, c.outside = nil, nil, nil, true
	c.target = &c.host.away
	if c.engine.closed.Load() {
		return refuse(LayerRoute, 0, ErrClosed)
	}
	if c.engine.config.RegistryOnly || c.host.RegistryOnly {
		return c.NotInMesh()
	}
	return nil
}
