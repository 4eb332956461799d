package mesh

import (
	"context"
	"reflect"
	"slices"
	"testing"

	"github.com/nosidecar/mesh/internal/engine"
)

// told is what an observer was told, in order.
type told struct{ events []string }

// mesh returns a mesh with the observer o. It is closed at the end of the test.
func (o *told) mesh(t *testing.T) *Mesh {
	t.Helper()
	note := func(event string) { o.events = append(o.events, event) }
	m, err := New(t.Context(), WithObserver(Observer{
		CallStart:    func(ctx context.Context, _ *Call) context.Context { note("call"); return ctx },
		AttemptStart: func(ctx context.Context, _ *Attempt) context.Context { note("attempt"); return ctx },
		AttemptEnd:   func(context.Context, *Attempt) { note("attempt ends") },
		CallMessage:  func(context.Context, *Call, bool) { note("message") },
		CallEnd: func(_ context.Context, c *Call) {
			if c.Last != nil && c.Last.Status == 0 {
				note("call ends before its attempt")
			}
			note("call ends")
		},
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// noHeader is a header that nobody sets.
type noHeader struct{}

func (noHeader) SetHeader(string, string)    {}
func (noHeader) Header() map[string][]string { return nil }

// Two goroutines may read and close a body. Whichever ends the call, its attempt has ended when observers are told.
func TestACallEndsForObserversAfterItsAttempts(t *testing.T) {
	var o told
	ctx, call := o.mesh(t).callStart(t.Context(), engine.CallStart{})
	attempt := call.(*callRecord).attempt(1)
	attempt.begin(ctx, noHeader{})
	call.End(new(engine.Call), engine.CallEnd{Status: 200})
	attempt.End(engine.AttemptEnd{Status: 200})
	if want := []string{"call", "attempt", "attempt ends", "call ends"}; !slices.Equal(o.events, want) {
		t.Errorf("observers were told %v, want %v", o.events, want)
	}
}

// A goroutine may report a message late, when the record of its call is already used for another call.
func TestAMessageOfACallThatHasEnded(t *testing.T) {
	var o told
	m := o.mesh(t)
	_, first := m.callStart(t.Context(), engine.CallStart{})
	ticket := first.Ticket()
	first.Message(ticket, true)
	first.End(new(engine.Call), engine.CallEnd{})
	first.Message(ticket, true)
	r := first.(*callRecord)
	r.mesh, r.ctx = m, t.Context()
	r.users.Add(oneCall) // as callStart does for the next call
	r.Message(ticket, true)
	r.Message(r.Ticket(), true)
	r.users.Add(^uint64(1)) // it is free to be used again
	if want := []string{"call", "message", "call ends", "message"}; !slices.Equal(o.events, want) {
		t.Errorf("observers were told %v, want %v", o.events, want)
	}
}

// An observer that panics does not prevent a call from ending.
func TestAnAttemptWhoseObserverPanics(t *testing.T) {
	var o told
	m := o.mesh(t)
	m.calls.attemptStart[0] = func(context.Context, *Attempt) context.Context { panic("observer") }
	ctx, call := m.callStart(t.Context(), engine.CallStart{})
	func() {
		defer func() { _ = recover() }()
		call.(*callRecord).attempt(1).begin(ctx, noHeader{})
	}()
	call.End(new(engine.Call), engine.CallEnd{})
	if !slices.Contains(o.events, "call ends") {
		t.Errorf("observers were told %v, and not of the end", o.events)
	}
}

// A record that is used again has nothing of the call before, whatever fields there are.
func TestARecordThatIsUsedAgainIsZero(t *testing.T) {
	var r recorded
	fill(t, reflect.ValueOf(&r).Elem())
	r.reset()
	zero(t, "recorded", reflect.ValueOf(r))
}

// fill sets all fields of a struct, and of the structs in it, to something.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	for i := range v.NumField() {
		f := reflect.NewAt(v.Field(i).Type(), v.Field(i).Addr().UnsafePointer()).Elem()
		switch f.Kind() {
		case reflect.Struct:
			fill(t, f)
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
		case reflect.Map:
			f.Set(reflect.MakeMap(f.Type()))
		case reflect.String:
			f.SetString("x")
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Interface:
			var some reflect.Value
			for _, one := range []any{context.Background(), context.Canceled, noHeader{}} {
				if reflect.TypeOf(one).Implements(f.Type()) {
					some = reflect.ValueOf(one)
				}
			}
			f.Set(some)
		default:
			if f.CanInt() {
				f.SetInt(1)
			} else {
				f.SetUint(1)
			}
		}
	}
}

func zero(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	for i := range v.NumField() {
		f, of := v.Field(i), name+"."+v.Type().Field(i).Name
		if f.Kind() == reflect.Struct {
			zero(t, of, f)
		} else if !f.IsZero() {
			t.Errorf("%s is not reset", of)
		}
	}
}
