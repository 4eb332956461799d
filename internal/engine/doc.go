// Package engine is the outbound half of a mesh: it takes calls to their destinations. It knows the plan, which is compiled
// from documents, and keeps the state of the destinations that are called: endpoints, connections, circuits, budgets. It is
// internal: a program sees mesh.Mesh.
//
// # Protocols
//
// The engine knows a call by a small view ([Request]) and an attempt by one value ([Attempt]). An [Adapter] knows what a
// call looks like on the wire, and handles its body: enginehttp for net/http, and DialContext here for connections without
// requests. Another protocol is added in this way:
//
//	type call struct {
//		engine.Call // one value holds the call, and the first attempt
//		first attempt
//		...
//	}
//
//	c := &call{...}
//	c.Begin(ctx, e, engine.Routed, described)             // described: for observers, if e.Observed()
//	refused, err := c.Serve(c.Context(), &view, c)
//	switch {
//	case err != nil: // as the caller is to get it, and the call has ended
//	case refused != nil: // answer it as refused.Answer says, or with what the protocol has for refused.Err; then c.End
//	default: // Send has a response; when that is over: c.End
//	}
//
// A call that Serve failed may be begun again after Renew, by a caller that waits until it can be sent. Serve calls the
// methods of the adapter, in this order: Outside alone, for a host outside the mesh; or Prepare, HashKey if the destination
// hashes, Mirror if the rule has mirrors, and Send. Send makes attempts as the retry.Loop of the call permits:
// retry.Loop.Do for requests of net/http; otherwise Budget.Deposit, and after each attempt that is to be retried
// (Policy.Config().On) Loop.Next, or NextAfter where the server says when, and Limiter.Release when the next attempt has got
// its answer. An attempt is:
//
//	err := c.Acquire(ctx, &a.Attempt, n)     // pool limits, circuit, endpoint, connections; ctx is the attempt's
//	ctx = a.Observe(ctx, n, header, sent)   // sent is nil unless e.HeadersObserved(): it changes what will be sent
//	... a.Connections().Dial, or .Address and .TLS, and .OnClose ...
//	err = a.Again(ctx)                      // if a library wants another endpoint before anything was sent
//	a.Answered(status)                      // when the response begins; then Header, if e.Observed()
//	err = a.End(err)                        // when it is over: exactly once, or Abandon if it was not sent, or Acquire panicked
//
// A protocol whose calls share connections says so with Multiplexed before it acquires. A streaming response is held to the
// time limits with the methods of deadline.Call ([Call.Limits]): WatchMessages, and Await and Received around each wait.
// Mirror makes copies with Engine.Mirrors.Copy: each is a call of the kind [Copied], whose Request has the target of its mirror.
package engine
