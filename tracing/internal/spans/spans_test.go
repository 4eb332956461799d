package spans_test

import (
	"context"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/outgoing"
	"github.com/nosidecar/mesh/tracing/internal/spans"
)

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "00f067aa0ba902b7"
	parent  = "00-" + traceID + "-" + spanID + "-01"
)

// The rules of https://www.w3.org/TR/trace-context-2/ and the cases of its test suite.
func TestTraceContextIsReadAsW3CSays(t *testing.T) {
	restart := ""
	states := func(n int) string {
		all := make([]string, n)
		for i := range all {
			all[i] = "k" + strings.Repeat("x", i) + "=1"
		}
		return strings.Join(all, ",")
	}
	for _, test := range []struct {
		name   string
		parent []string
		state  []string
		want   string // what is sent on, with the span that came; "" for a new trace
		states string
	}{
		{"sampled", []string{parent}, nil, parent, ""},
		{"unsampled", []string{parent[:53] + "00"}, nil, parent[:53] + "00", ""},
		{"random", []string{parent[:53] + "02"}, nil, parent[:53] + "02", ""},
		{"unknown flags are cleared", []string{parent[:53] + "ff"}, nil, parent[:53] + "03", ""},
		{"white space around", []string{" \t" + parent + "\t "}, nil, parent, ""},
		{"two headers", []string{parent, parent}, nil, restart, ""},
		{"two in one header", []string{parent + "," + parent}, nil, restart, ""},
		{"empty", []string{""}, nil, restart, ""},
		{"version 00 with more", []string{parent + "-what-the-future-will-be-like"}, nil, restart, ""},
		{"version 00 with a dash", []string{parent + "-"}, nil, restart, ""},
		{"version cc", []string{"cc" + parent[2:]}, nil, parent, ""},
		{"version cc with more", []string{"cc" + parent[2:] + "-what-the-future-will-be-like"}, nil, parent, ""},
		{"version cc with a dot", []string{"cc" + parent[2:] + ".what-the-future-will-be-like"}, nil, restart, ""},
		{"version ff", []string{"ff" + parent[2:]}, nil, restart, ""},
		{"illegal version", []string{".0" + parent[2:]}, nil, restart, ""},
		{"short version", []string{parent[1:]}, nil, restart, ""},
		{"upper case", []string{strings.ToUpper(parent)}, nil, restart, ""},
		{"zero trace id", []string{"00-00000000000000000000000000000000-" + spanID + "-01"}, nil, restart, ""},
		{"zero span id", []string{"00-" + traceID + "-0000000000000000-01"}, nil, restart, ""},
		{"illegal trace id", []string{"00-.af7651916cd43dd8448eb211c80319c-" + spanID + "-01"}, nil, restart, ""},
		{"short trace id", []string{"00-af7651916cd43dd8448eb211c80319c-" + spanID + "-01"}, nil, restart, ""},
		{"illegal span id", []string{"00-" + traceID + "-.0f067aa0ba902b7-01"}, nil, restart, ""},
		{"illegal flags", []string{parent[:53] + ".1"}, nil, restart, ""},
		{"short flags", []string{parent[:54]}, nil, restart, ""},
		{"state", []string{parent}, []string{"foo=1,bar=2"}, parent, "foo=1,bar=2"},
		{"state in several lines", []string{parent}, []string{"foo=1", "bar=2,rojo=1"}, parent, "foo=1,bar=2,rojo=1"},
		{"state with empty members", []string{parent}, []string{"foo=1, ,bar=2", "", "baz=3"}, parent, "foo=1,bar=2,baz=3"},
		{"state with spaces", []string{parent}, []string{"foo=1 \t , \t bar=2"}, parent, "foo=1,bar=2"},
		{"vendor key", []string{parent}, []string{"0rojo@vendor=1"}, parent, "0rojo@vendor=1"},
		{"illegal key", []string{parent}, []string{"foo=1,foo@=1"}, parent, ""},
		{"upper case key", []string{parent}, []string{"FOO=1"}, parent, ""},
		{"duplicate key", []string{parent}, []string{"foo=1,foo=2"}, parent, ""},
		{"no value", []string{parent}, []string{"foo"}, parent, ""},
		{"32 members", []string{parent}, []string{states(32)}, parent, states(32)},
		{"33 members", []string{parent}, []string{states(33)}, parent, ""},
		{"state alone", nil, []string{"foo=1"}, restart, ""},
		{"state of what restarts", []string{parent[:54]}, []string{"foo=1"}, restart, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := http.Header{}
			if test.parent != nil {
				h["Traceparent"] = test.parent
			}
			if test.state != nil {
				h["Tracestate"] = test.state
			}
			sent := passOn(t, spans.Config{Formats: "tracecontext"}, h)
			if got := sent.Get("Traceparent"); got != test.want {
				t.Errorf("traceparent %q, want %q", got, test.want)
			}
			if got := sent.Get("Tracestate"); got != test.states {
				t.Errorf("tracestate %q, want %q", got, test.states)
			}
		})
	}
}

// passOn returns what a process without a Provider sends on. It changes only the ids of spans that nobody records, and these
// are put back.
func passOn(t *testing.T, c spans.Config, came http.Header) http.Header {
	t.Helper()
	c.NoRequestID = true
	c.NoClientSpans = true // so that ids stay as they are
	tracer, err := spans.New(c)
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequest(http.MethodGet, "http://orders/", nil)
	req.Header = came
	ctx := tracer.StartInbound(context.Background(), &spans.Request{Request: req})
	return attempt(tracer, ctx, nil)
}

// attempt returns the headers of a call with ctx.
func attempt(tracer *spans.Tracer, ctx context.Context, header http.Header) http.Header {
	req, _ := http.NewRequest(http.MethodGet, "http://orders/", nil)
	d := spans.Call{Method: req.Method, URL: req.URL, Start: time.Now(), Owner: new(int), Header: header, Caller: ctx}
	sent := sink(http.Header{})
	for name, values := range header {
		sent[name] = values
	}
	ctx = tracer.StartCall(ctx, &d)
	tracer.StartAttempt(ctx, &d, &spans.Attempt{Number: 1, Start: d.Start, Header: header, Set: sent})
	tracer.EndAttempt(ctx, d.Owner, &spans.AttemptEnd{Status: 200, At: time.Now()})
	tracer.EndCall(ctx, &d, &spans.CallEnd{Status: 200, GRPCStatus: -1})
	return http.Header(sent)
}

type sink http.Header

func (s sink) SetHeader(name, value string) {
	if value == "" {
		delete(s, name)
	} else {
		s[name] = []string{value}
	}
}

// A tracestate of a million commas costs no million strings.
func TestTracestateIsBounded(t *testing.T) {
	h := http.Header{"Traceparent": {parent}, "Tracestate": {"foo=1" + strings.Repeat(",", 1<<20)}}
	var sc trace.SpanContext
	if n := leak.Allocated(func() { sc = spans.Extract(h) }); n > 1<<20 {
		t.Errorf("reading it takes %d bytes of memory", n)
	}
	if !sc.IsValid() || sc.TraceState().Len() != 0 {
		t.Errorf("the trace goes on as %v, want it without the state", sc)
	}
}

// A span with the ids of the published examples of B3 is sent as they have it, but for the parent, which is optional and not known
// for what begins here. What is sent is read as the same span.
func TestB3IsSentAsPublished(t *testing.T) {
	const trace128, span = "80f198ee56343ba864fe8b2a57d3eff7", "e457b5a2e4d86bd1"
	for _, sampled := range []string{"0", "1"} {
		sc := trace.SpanContextConfig{Remote: true}
		sc.TraceID, _ = trace.TraceIDFromHex(trace128)
		sc.SpanID, _ = trace.SpanIDFromHex(span)
		if sampled == "1" {
			sc.TraceFlags = trace.FlagsSampled
		}
		ctx := trace.ContextWithRemoteSpanContext(context.Background(), trace.NewSpanContext(sc))
		for formats, want := range map[string]http.Header{
			"b3":      {"B3": {trace128 + "-" + span + "-" + sampled}},
			"b3multi": {"X-B3-Traceid": {trace128}, "X-B3-Spanid": {span}, "X-B3-Sampled": {sampled}},
		} {
			tracer, err := spans.New(spans.Config{Formats: formats, NoRequestID: true, NoClientSpans: true})
			if err != nil {
				t.Fatal(err)
			}
			sent := attempt(tracer, ctx, nil)
			if !reflect.DeepEqual(sent, want) {
				t.Errorf("%s: %v was sent, want %v", formats, sent, want)
			}
			if got := spans.Extract(sent); !got.Equal(trace.NewSpanContext(sc)) {
				t.Errorf("%s: %v was sent, and is read as %v", formats, sent, got)
			}
		}
	}
}

// The examples of https://github.com/openzipkin/b3-propagation, and what follows from its text.
func TestB3IsReadAsPublished(t *testing.T) {
	const (
		trace128 = "80f198ee56343ba864fe8b2a57d3eff7"
		trace64  = "64fe8b2a57d3eff7"
		span     = "e457b5a2e4d86bd1"
		above    = "05e3ac9a4f6e3b90"
		padded   = "0000000000000000" + trace64
	)
	multi := func(kv ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(kv); i += 2 {
			h.Add(kv[i], kv[i+1])
		}
		return h
	}
	single := func(s string) http.Header { return http.Header{"B3": {s}} }
	for _, test := range []struct {
		name string
		came http.Header
		want string // the single header that is sent on, "" for none, with "new" for new ids
	}{
		{"multi", multi("X-B3-TraceId", trace128, "X-B3-ParentSpanId", above, "X-B3-SpanId", span, "X-B3-Sampled", "1"), trace128 + "-" + span + "-1"},
		{"multi, denied", multi("X-B3-TraceId", trace128, "X-B3-SpanId", span, "X-B3-Sampled", "0"), trace128 + "-" + span + "-0"},
		{"multi, 64 bits", multi("X-B3-TraceId", trace64, "X-B3-SpanId", span, "X-B3-Sampled", "1"), padded + "-" + span + "-1"},
		{"multi, deferred", multi("X-B3-TraceId", trace128, "X-B3-SpanId", span), trace128 + "-" + span + "-0"},
		{"multi, debug", multi("X-B3-TraceId", trace128, "X-B3-SpanId", span, "X-B3-Flags", "1"), trace128 + "-" + span + "-1"},
		{"multi, true", multi("X-B3-TraceId", trace128, "X-B3-SpanId", span, "X-B3-Sampled", "true"), trace128 + "-" + span + "-1"},
		{"multi, the first of repeated values", multi("X-B3-TraceId", trace128, "X-B3-TraceId", trace64, "X-B3-SpanId", span, "X-B3-Sampled", "1", "X-B3-Sampled", "0"), trace128 + "-" + span + "-1"},
		{"multi without a span", multi("X-B3-TraceId", trace128, "X-B3-Sampled", "1"), ""},
		{"multi, malformed", multi("X-B3-TraceId", "no", "X-B3-SpanId", span, "X-B3-Sampled", "1"), ""},
		{"multi, malformed decision", multi("X-B3-TraceId", trace128, "X-B3-SpanId", span, "X-B3-Sampled", "yes"), ""},
		{"multi, denied without ids", multi("X-B3-Sampled", "0"), "new-0"},
		{"multi, sampled without ids", multi("X-B3-Sampled", "1"), "new-1"},
		{"multi, debug without ids", multi("X-B3-Flags", "1"), "new-1"},
		{"single", single(trace128 + "-" + span + "-1-" + above), trace128 + "-" + span + "-1"},
		{"single without a parent", single(trace128 + "-" + span + "-1"), trace128 + "-" + span + "-1"},
		{"single, deferred", single(trace128 + "-" + span), trace128 + "-" + span + "-0"},
		{"single, debug", single(trace128 + "-" + span + "-d"), trace128 + "-" + span + "-1"},
		{"single, 64 bits", single(trace64 + "-" + span + "-1"), padded + "-" + span + "-1"},
		{"single, denied without ids", single("0"), "new-0"},
		{"single, sampled without ids", single("1"), "new-1"},
		{"single, debug without ids", single("d"), "new-1"},
		{"single, malformed", single("b3"), ""},
		{"single, malformed parent", single(trace128 + "-" + span + "-1-x"), ""},
		{"single, empty decision", single(trace128 + "-" + span + "-"), ""},
		{"single before multi", http.Header{"B3": {trace128 + "-" + span + "-0"}, "X-B3-Traceid": {trace64}, "X-B3-Spanid": {span}, "X-B3-Sampled": {"1"}}, trace128 + "-" + span + "-0"},
		{"W3C before B3", http.Header{"Traceparent": {parent}, "B3": {trace128 + "-" + span + "-0"}}, traceID + "-" + spanID + "-1"},
		{"broken W3C before B3", http.Header{"Traceparent": {parent, parent}, "B3": {trace128 + "-" + span + "-0"}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			sent := passOn(t, spans.Config{Formats: "tracecontext,b3,b3multi"}, test.came)
			got := sent.Get("B3")
			if decision, ok := strings.CutPrefix(test.want, "new-"); ok {
				if len(got) != 51 || got[50:] != decision || strings.Contains(got, strings.Repeat("0", 16)) {
					t.Fatalf("b3 %q, want new ids and %s", got, decision)
				}
			} else if got != test.want {
				t.Fatalf("b3 %q, want %q", got, test.want)
			}
			if got == "" {
				return
			}
			// All encodings name the same span.
			if w3c := sent.Get("Traceparent"); w3c[3:52] != got[:49] {
				t.Errorf("traceparent %s, b3 %s", w3c, got)
			}
			if many := sent.Get("X-B3-TraceId") + "-" + sent.Get("X-B3-SpanId") + "-" + sent.Get("X-B3-Sampled"); many != got {
				t.Errorf("X-B3-* %s, b3 %s", many, got)
			}
		})
	}
}

func TestB3DecisionWithoutIDsHoldsForTheNewTrace(t *testing.T) {
	for decision, want := range map[string]bool{"0": false, "1": true, "d": true} {
		// A sampler that would have it the other way.
		sampler := sdk.ParentBased(sdk.AlwaysSample())
		if want {
			sampler = sdk.ParentBased(sdk.NeverSample())
		}
		tracer, err := spans.New(spans.Config{Provider: sdk.NewTracerProvider(sdk.WithSampler(sampler))})
		if err != nil {
			t.Fatal(err)
		}
		req, _ := http.NewRequest(http.MethodGet, "http://orders/", nil)
		req.Header["B3"] = []string{decision}
		ctx := tracer.StartInbound(context.Background(), &spans.Request{Request: req})
		if got := trace.SpanContextFromContext(ctx).IsSampled(); got != want {
			t.Errorf("b3: %s: sampled %t, want %t", decision, got, want)
		}
	}
}

// A trace that begins here says that its id is random, and one that goes on says what it said.
func TestRandomFlag(t *testing.T) {
	for _, sampler := range []sdk.Sampler{sdk.AlwaysSample(), sdk.NeverSample()} {
		tracer, err := spans.New(spans.Config{Provider: sdk.NewTracerProvider(sdk.WithSampler(sampler))})
		if err != nil {
			t.Fatal(err)
		}
		for came, want := range map[string]byte{"": 2, parent[:53] + "01": 0, parent[:53] + "03": 2} {
			req, _ := http.NewRequest(http.MethodGet, "http://orders/", nil)
			if came != "" {
				req.Header["Traceparent"] = []string{came}
			}
			ctx := tracer.StartInbound(context.Background(), &spans.Request{Request: req})
			sent := attempt(tracer, ctx, nil).Get("Traceparent")
			if len(sent) != 55 || (sent[54]-'0')&2 != want {
				t.Errorf("%s: %q came, %q was sent", sampler.Description(), came, sent)
			}
		}
		if sent := attempt(tracer, context.Background(), nil).Get("Traceparent"); len(sent) != 55 || (sent[54]-'0')&2 == 0 {
			t.Errorf("%s: a call that begins a trace sends %q", sampler.Description(), sent)
		}
	}
}

// What nobody records still has ids of its own in every hop; what somebody records must keep them, or his spans lose their
// parents.
func TestSpanIDsOfCallsWithoutASpan(t *testing.T) {
	tracer, err := spans.New(spans.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for flags, same := range map[string]bool{"00": false, "01": true} {
		req, _ := http.NewRequest(http.MethodGet, "http://orders/", nil)
		req.Header["Traceparent"] = []string{parent[:53] + flags}
		ctx := tracer.StartInbound(context.Background(), &spans.Request{Request: req})
		sent := attempt(tracer, ctx, nil).Get("Traceparent")
		if sent[:35] != parent[:35] || sent[53:] != flags || (sent[36:52] == spanID) != same {
			t.Errorf("%s sends on %s", req.Header["Traceparent"], sent)
		}
	}
}

func TestWhatIsSetWinsOverWhatWasCopied(t *testing.T) {
	provider := sdk.NewTracerProvider()
	ctx, span := provider.Tracer("").Start(context.Background(), "handler")
	defer span.End()
	tracer, err := spans.New(spans.Config{Provider: provider, Formats: "tracecontext"})
	if err != nil {
		t.Fatal(err)
	}
	copied := http.Header{
		"Traceparent": {parent, parent}, "Tracestate": {"old=1"}, "B3": {"0"}, "X-B3-Traceid": {traceID}, "X-B3-Spanid": {spanID},
		"X-B3-Sampled": {"0"}, "X-B3-Flags": {"1"}, "X-B3-Parentspanid": {spanID}, "X-Request-Id": {"mine"}, "Baggage": {"a=b"},
	}
	sent := attempt(tracer, ctx, copied)
	var names []string
	for name := range sent {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := []string{"Baggage", "Traceparent", "X-Request-Id"}; !slices.Equal(names, want) {
		t.Errorf("sent %v, want %v", names, want)
	}
	if got := sent["Traceparent"]; len(got) != 1 || !strings.Contains(got[0], span.SpanContext().TraceID().String()) {
		t.Errorf("traceparent %q", got)
	}
	if sent.Get("X-Request-Id") != "mine" || sent.Get("Baggage") != "a=b" {
		t.Errorf("what the application set was not kept: %v", sent)
	}
}

// The same holds for a request that is copied field by field, which is asked only once whether it carries a trace.
func TestWhatIsSetWinsInALargeHeader(t *testing.T) {
	provider := sdk.NewTracerProvider()
	ctx, span := provider.Tracer("").Start(context.Background(), "handler")
	defer span.End()
	tracer, err := spans.New(spans.Config{Provider: provider, Formats: "tracecontext"})
	if err != nil {
		t.Fatal(err)
	}
	for _, copied := range []string{
		"Tracestate", "B3", "X-B3-Traceid", "X-B3-Spanid", "X-B3-Sampled", "X-B3-Flags", "X-B3-Parentspanid", "X-Request-Id", "Baggage",
	} {
		header := http.Header{copied: {"mine"}}
		if strings.HasPrefix(copied, "X-B3-") {
			header["X-B3-Sampled"] = []string{"1"} // the others mean nothing without it, or without the next
			header["X-B3-Traceid"] = []string{traceID}
		}
		for i := range 20 {
			header["X-"+strconv.Itoa(i)] = []string{"1"}
		}
		var sent outgoing.Request
		sent.Begin(header, false, 7)
		d := spans.Call{Method: http.MethodGet, URL: new(url.URL), Owner: new(int), Header: header, Caller: ctx}
		tracer.StartAttempt(ctx, &d, &spans.Attempt{Number: 1, Header: header, Set: &sent})
		kept := sent.Header()[copied] != nil
		if want := copied == "X-Request-Id" || copied == "Baggage"; kept != want {
			t.Errorf("%s of the application is sent: %t, want %t", copied, kept, want)
		}
		if got := sent.Header()["X-Request-Id"]; copied == "X-Request-Id" && got[0] != "mine" {
			t.Errorf("X-Request-Id of the application is sent as %q", got)
		}
	}
}

// One header of B3 is enough to be believed, so each is removed where B3 is not sent.
func TestSingleHeadersOfB3AreRemoved(t *testing.T) {
	provider := sdk.NewTracerProvider(sdk.WithSampler(sdk.NeverSample()))
	ctx, _ := provider.Tracer("").Start(context.Background(), "handler")
	tracer, err := spans.New(spans.Config{Provider: provider, Formats: "tracecontext", NoRequestID: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, copied := range []http.Header{
		{"B3": {"1"}}, {"X-B3-Flags": {"1"}}, {"X-B3-Sampled": {"1"}}, {"X-B3-Traceid": {traceID}, "X-B3-Spanid": {spanID}, "X-B3-Parentspanid": {spanID}},
	} {
		sent := attempt(tracer, ctx, copied)
		if len(sent) != 1 || sent["Traceparent"] == nil {
			t.Errorf("with %v of the application: sent %v, want a traceparent alone", copied, sent)
		}
	}
}

// A trace whose headers only the application carries, as a reverse proxy does, goes on.
func TestCopiedHeadersAreContinued(t *testing.T) {
	tracer, err := spans.New(spans.Config{Provider: sdk.NewTracerProvider()})
	if err != nil {
		t.Fatal(err)
	}
	sent := attempt(tracer, context.Background(), http.Header{"Traceparent": {parent}})
	if got := sent.Get("Traceparent"); got[:35] != parent[:35] || got[36:52] == spanID {
		t.Errorf("traceparent %s after %s", got, parent)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, test := range []struct {
		config spans.Config
		want   string
	}{
		{spans.Config{Formats: "jaeger"}, `"jaeger"`},
		{spans.Config{Formats: "b3,"}, `""`},
		{spans.Config{Forward: []string{"x-tenant", "b3"}}, "B3"},
	} {
		if _, err := spans.New(test.config); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want an error about %s", test.config, err, test.want)
		}
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(parent, "a=1,b=2", "", "", "", "")
	f.Add("", "", traceID+"-"+spanID+"-1-"+spanID, "", "", "")
	f.Add("", "", "", traceID[:16], spanID, "1")
	f.Fuzz(func(t *testing.T, w3c, state, single, id, span, sampled string) {
		h := http.Header{}
		for name, value := range map[string]string{
			"Traceparent": w3c, "Tracestate": state, "B3": single, "X-B3-Traceid": id, "X-B3-Spanid": span, "X-B3-Sampled": sampled,
		} {
			if value != "" {
				h[name] = []string{value}
			}
		}
		sc := spans.Extract(h)
		if !sc.IsValid() {
			return
		}
		if !sc.IsRemote() || sc.TraceFlags()&^3 != 0 {
			t.Fatalf("%v: %+v", h, sc)
		}
		tracer, err := spans.New(spans.Config{NoClientSpans: true, Formats: "tracecontext,b3,b3multi"})
		if err != nil {
			t.Fatal(err)
		}
		sent := attempt(tracer, trace.ContextWithRemoteSpanContext(context.Background(), sc), nil)
		again := spans.Extract(sent)
		if again.TraceID() != sc.TraceID() || again.SpanID() != sc.SpanID() || again.TraceFlags() != sc.TraceFlags() ||
			again.TraceState().String() != sc.TraceState().String() {
			t.Fatalf("%v is sent on as %v", h, sent)
		}
		delete(sent, "Traceparent")
		for range 2 { // B3 says the same, once in one header and once in many
			if b := spans.Extract(sent); b.TraceID() != sc.TraceID() || b.SpanID() != sc.SpanID() || b.IsSampled() != sc.IsSampled() {
				t.Fatalf("%v is sent on as %v", h, sent)
			}
			delete(sent, "B3")
		}
	})
}
