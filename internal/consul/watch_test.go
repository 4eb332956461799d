package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/leak"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

// reply is what Consul answers to one read, in the order of the reads.
type reply struct {
	set      string // names with spaces between
	index    uint64
	after    time.Duration // that the read takes; forever: until its context ends
	filtered bool          // X-Consul-Results-Filtered-By-ACLs
	deny     bool          // X-Consul-Default-ACL-Policy
	err      error
}

const forever = time.Duration(1<<63 - 1)

// script answers reads, and ends the watch with the first that it has no answer for. It writes down what is asked for and what
// is yielded.
type script struct {
	replies []reply
	began   time.Time
	end     context.CancelFunc
	reads   []string // "index wait", with "!" for a read that must come from the leader
	at      []time.Duration
	yielded []string // sets, or errors in parentheses
	asked   int      // calls of Allowed
	denied  error    // what Allowed returns
	regains bool     // Allowed finds rights that the token did not have before, and the reads after it find "a b"
}

// refused is the error of a query with the given parameters that no agent answers.
func refused(parameters string) error {
	return &url.Error{Op: "Get", URL: "http://agent/v1/kv/?" + parameters, Err: io.ErrUnexpectedEOF}
}

func (s *script) read(options *api.QueryOptions) ([]string, *api.QueryMeta, error) {
	text := fmt.Sprint(options.WaitIndex)
	if options.WaitTime > 0 {
		text += " " + options.WaitTime.String()
	}
	if !options.AllowStale {
		text += "!"
	}
	s.reads, s.at = append(s.reads, text), append(s.at, time.Since(s.began))
	if len(s.replies) == 0 {
		s.end()
		return nil, nil, options.Context().Err()
	}
	next := s.replies[0]
	s.replies = s.replies[1:]
	select {
	case <-options.Context().Done():
		return nil, nil, options.Context().Err()
	case <-time.After(next.after):
	}
	if next.err != nil {
		return nil, nil, next.err
	}
	meta := &api.QueryMeta{LastIndex: next.index, ResultsFilteredByACLs: next.filtered}
	if next.deny {
		meta.DefaultACLPolicy = "deny"
	}
	return strings.Fields(next.set), meta, nil
}

func (s *script) allowed(*api.QueryOptions) error {
	s.asked++
	if s.regains {
		for i := range s.replies {
			s.replies[i].set = "a b"
		}
	}
	return s.denied
}

func (s *script) watch() Watch[[]string] {
	return Watch[[]string]{
		What: "it", Read: s.read, Allowed: s.allowed, Equal: slices.Equal[[]string],
		Size: func(set []string) int { return len(set) },
	}
}

// follow runs the watch for so long, or until the script is at its end.
func (s *script) follow(t *testing.T, w Watch[[]string], d time.Duration) {
	t.Helper()
	s.began = time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	s.end = cancel
	for set, err := range w.All(ctx) {
		switch {
		case err == nil:
			s.yielded = append(s.yielded, strings.Join(set, " "))
		case errors.Is(err, ErrDenied):
			s.yielded = append(s.yielded, "(denied)")
		case errors.Is(err, errReborn):
			s.yielded = append(s.yielded, "(reborn)")
		default:
			s.yielded = append(s.yielded, "("+strings.TrimPrefix(err.Error(), "consul: it: ")+")")
		}
	}
	if ctx.Err() == nil {
		t.Errorf("the watch ended by itself after %v", time.Since(s.began))
	}
}

func status(code int) error { return api.StatusError{Code: code, Body: "text"} }

// limits is what a leader says that limits reads.
var limits = api.StatusError{
	Code: http.StatusServiceUnavailable, Body: "rate limit exceeded for operation that can only be performed by the leader, try again later",
}

// TestWatch has a case for each rule about what is read next and what is believed. Pauses are in TestPace.
func TestWatch(t *testing.T) {
	const text = "Unexpected response code: "
	for _, test := range []struct {
		name    string
		change  func(*Watch[[]string])
		denied  error // what Allowed returns
		regains bool  // the token has its rights back when Allowed is called
		replies []reply
		reads   []string
		yielded []string
		asked   int
	}{
		{
			name:    "the first read does not block, later ones do and have a wait",
			replies: []reply{{set: "a", index: 7}, {set: "a b", index: 9}},
			reads:   []string{"0", "7 1m0s", "9 1m0s"},
			yielded: []string{"a", "a b"},
		},
		{
			name:    "the wait can be set",
			change:  func(w *Watch[[]string]) { w.Wait = 5 * time.Minute },
			replies: []reply{{set: "a", index: 7}},
			reads:   []string{"0", "7 5m0s"},
			yielded: []string{"a"},
		},
		{
			name:    "consistent reads",
			change:  func(w *Watch[[]string]) { w.Options.RequireConsistent = true },
			replies: []reply{{set: "a", index: 7}},
			reads:   []string{"0!", "7 1m0s!"},
			yielded: []string{"a"},
		},
		{
			name:    "an index of 0, absent or unreadable, is 1: a read of 0 does not block",
			replies: []reply{{set: "a", index: 0}, {set: "b", index: 0}},
			reads:   []string{"0", "1 1m0s", "1 1m0s"},
			yielded: []string{"a", "b"},
		},
		{
			name:    "an index that goes back: from the beginning, once",
			replies: []reply{{set: "a", index: 20}, {set: "b", index: 9}, {set: "b", index: 9}},
			reads:   []string{"0", "20 1m0s", "0", "9 1m0s"},
			yielded: []string{"a", "b"},
		},
		{
			name:    "an index that goes back each time, as that of a service without instances: empty, and not a busy loop",
			replies: []reply{{index: 49}, {index: 13, after: time.Minute}, {index: 49}, {index: 13, after: time.Minute}, {index: 49}},
			reads:   []string{"0", "49 1m0s", "0", "49 1m0s", "0", "49 1m0s"},
			yielded: []string{""},
		},
		{
			name:    "the index moves and nothing else: not yielded",
			replies: []reply{{set: "a", index: 7}, {set: "a", index: 8}, {set: "a", index: 9}},
			reads:   []string{"0", "7 1m0s", "8 1m0s", "9 1m0s"},
			yielded: []string{"a"},
		},
		{
			name:    "empty without an index: not what an agent answers",
			replies: []reply{{set: "a", index: 7}, {}, {set: "a", index: 7}, {set: "b", index: 0}},
			reads:   []string{"0", "7 1m0s", "0", "7 1m0s", "0"},
			yielded: []string{"a", "(it is empty and has no X-Consul-Index, so it is not what an agent answers)", "a", "b"},
		},
		{
			name:    "empty without an index, and for the answer of a leader, too",
			replies: []reply{{set: "a", index: 7}, {index: 8}, {}, {set: "a", index: 7}},
			reads:   []string{"0", "7 1m0s", "0!", "0", "7 1m0s"},
			yielded: []string{"a", "(it is empty and has no X-Consul-Index, so it is not what an agent answers)", "a"},
		},
		{
			name:    "of rules, what is older than the last is asked of the leader",
			change:  func(w *Watch[[]string]) { w.Newest = true },
			replies: []reply{{set: "a", index: 20}, {set: "old", index: 9}, {set: "b", index: 21}, {set: "old", index: 9}, {err: status(500)}, {set: "old", index: 9}, {set: "b", index: 21}},
			reads:   []string{"0", "20 1m0s", "0!", "21 1m0s", "0!", "0", "0!", "21 1m0s"},
			yielded: []string{"a", "b", "(" + text + "500 (text))", "b"},
		},
		{
			name:    "of rules, what is older than the last counts if the leader says so",
			change:  func(w *Watch[[]string]) { w.Newest = true },
			replies: []reply{{set: "a", index: 20}, {set: "old", index: 9}, {set: "old", index: 9}, {set: "b", index: 10}},
			reads:   []string{"0", "20 1m0s", "0!", "0", "10 1m0s"},
			yielded: []string{"a", "old", "b"},
		},
		{
			name:    "without Equal each answer is yielded",
			change:  func(w *Watch[[]string]) { w.Equal = nil },
			replies: []reply{{set: "a", index: 7}, {set: "a", index: 8}},
			reads:   []string{"0", "7 1m0s", "8 1m0s"},
			yielded: []string{"a", "a"},
		},
		{
			name:    "after an error from the beginning, and what is the same is yielded again",
			replies: []reply{{set: "a", index: 7}, {err: io.ErrUnexpectedEOF}, {set: "a", index: 7}},
			reads:   []string{"0", "7 1m0s", "0", "7 1m0s"},
			yielded: []string{"a", "(unexpected EOF)", "a"},
		},
		{
			name:    "the same error is yielded once in a row",
			replies: []reply{{err: status(500)}, {err: status(500)}, {err: status(429)}, {set: "a", index: 3}, {err: status(429)}},
			reads:   []string{"0", "0", "0", "0", "3 1m0s", "0"},
			yielded: []string{"(" + text + "500 (text))", "(" + text + "429 (text))", "a", "(" + text + "429 (text))"},
		},
		{
			name: "how a query blocks is not part of an error",
			replies: []reply{{set: "a", index: 7}, {err: refused("dc=b&index=7&stale=&wait=60000ms")}, {err: refused("dc=b&stale=")},
				{err: refused("dc=c&stale=")}},
			reads:   []string{"0", "7 1m0s", "0", "0", "0"},
			yielded: []string{"a", `(Get "http://agent/v1/kv/?dc=b": unexpected EOF)`, `(Get "http://agent/v1/kv/?dc=c": unexpected EOF)`},
		},
		{
			name:    "an error that wraps the client's",
			replies: []reply{{err: fmt.Errorf("service: %w", status(503))}},
			reads:   []string{"0", "0"},
			yielded: []string{"(service: " + text + "503 (text))"},
		},
		{
			name:    "an answer that does not come within the wait, a sixteenth of it and 10 s",
			replies: []reply{{set: "a", index: 7}, {after: forever}, {after: forever}},
			reads:   []string{"0", "7 1m0s", "0", "0"},
			yielded: []string{"a", "(no answer within 1m13.75s)", "(no answer within 10s)"},
		},
		{
			name:    "403: the last answer holds",
			replies: []reply{{set: "a", index: 7}, {err: status(403)}, {set: "b", index: 8}},
			reads:   []string{"0", "7 1m0s", "0", "8 1m0s"},
			yielded: []string{"a", "(denied)", "b"},
		},
		{
			name:    "empty: the leader says so, too",
			replies: []reply{{set: "a", index: 7}, {index: 8}, {index: 8}},
			reads:   []string{"0", "7 1m0s", "0!", "8 1m0s"},
			yielded: []string{"a", ""},
		},
		{
			name:    "empty: the leader knows better",
			replies: []reply{{set: "a", index: 7}, {index: 8}, {set: "a b", index: 9}},
			reads:   []string{"0", "7 1m0s", "0!", "9 1m0s"},
			yielded: []string{"a", "a b"},
		},
		{
			name:    "empty: there is no leader to ask",
			replies: []reply{{set: "a", index: 7}, {index: 8}, {err: status(500)}, {set: "a", index: 7}},
			reads:   []string{"0", "7 1m0s", "0!", "0", "7 1m0s"},
			yielded: []string{"a", "(" + text + "500 (text))", "a"},
		},
		{
			name:    "empty when the wait is over, with the same index and no header: the policy was narrowed",
			replies: []reply{{set: "a", index: 7}, {index: 7, after: time.Minute}, {index: 7, filtered: true}, {set: "a", index: 7}},
			reads:   []string{"0", "7 1m0s", "0!", "0", "7 1m0s"},
			yielded: []string{"a", "(denied)", "a"},
		},
		{
			name:    "empty, though nothing is left out, of a Consul that denies by default: this client may not read",
			denied:  fmt.Errorf("%w: no token", ErrDenied),
			replies: []reply{{set: "a", index: 7, deny: true}, {index: 8, deny: true}},
			reads:   []string{"0", "7 1m0s", "0"},
			yielded: []string{"a", "(denied)"},
			asked:   1,
		},
		{
			name:    "empty of a Consul that denies by default: this client may read",
			replies: []reply{{set: "a", index: 7, deny: true}, {index: 8, deny: true}, {index: 8, deny: true}},
			reads:   []string{"0", "7 1m0s", "0!", "8 1m0s"},
			yielded: []string{"a", ""},
			asked:   1,
		},
		{
			name:    "empty of a Consul that denies by default: this client may read since a moment ago",
			regains: true,
			replies: []reply{{set: "a", index: 7, deny: true}, {index: 8, deny: true}, {index: 8, deny: true}},
			reads:   []string{"0", "7 1m0s", "0!", "8 1m0s"},
			yielded: []string{"a", "a b"},
			asked:   1,
		},
		{
			name:    "empty at first of a Consul that denies by default: this client may read since a moment ago",
			regains: true,
			replies: []reply{{index: 8, deny: true}, {index: 8, deny: true}},
			reads:   []string{"0", "0!", "8 1m0s"},
			yielded: []string{"a b"},
			asked:   1,
		},
		{
			name:    "empty at first, of a Consul that denies by default, and that is that",
			replies: []reply{{index: 8, deny: true}, {index: 8, deny: true}},
			reads:   []string{"0", "0!", "8 1m0s"},
			yielded: []string{""},
			asked:   1,
		},
		{
			name:    "empty at first, with the header",
			replies: []reply{{index: 8, filtered: true}},
			reads:   []string{"0", "0"},
			yielded: []string{"(denied)"},
		},
		{
			name:    "empty at first, of a Consul that denies by default: this client may not read",
			denied:  status(403),
			replies: []reply{{index: 8, deny: true}},
			reads:   []string{"0", "0"},
			yielded: []string{"(denied)"},
			asked:   1,
		},
		{
			name:    "empty at first, and that is that",
			replies: []reply{{index: 8}, {set: "a", index: 9}},
			reads:   []string{"0", "8 1m0s", "9 1m0s"},
			yielded: []string{"", "a"},
		},
		{
			name:    "shorter, without the header",
			replies: []reply{{set: "a b c", index: 7}, {set: "a", index: 8}},
			reads:   []string{"0", "7 1m0s", "8 1m0s"},
			yielded: []string{"a b c", "a"},
		},
		{
			name:    "shorter, with the header: the policy was narrowed",
			replies: []reply{{set: "a b c", index: 7}, {set: "a", index: 8, filtered: true}, {set: "a", index: 8, filtered: true}},
			reads:   []string{"0", "7 1m0s", "0!", "0"},
			yielded: []string{"a b c", "(denied)"},
		},
		{
			name:    "shorter, with the header that was there before: a part of what this client may read",
			replies: []reply{{set: "a b c", index: 7, filtered: true}, {set: "a", index: 8, filtered: true}},
			reads:   []string{"0", "7 1m0s", "8 1m0s"},
			yielded: []string{"a b c", "a"},
		},
		{
			name:    "answers whose denial is an error are not doubted",
			change:  func(w *Watch[[]string]) { w.Size = nil },
			replies: []reply{{set: "a", index: 7}, {index: 8, filtered: true, deny: true}},
			reads:   []string{"0", "7 1m0s", "8 1m0s"},
			yielded: []string{"a", ""},
		},
		{
			name:    "a server that lost its state has nothing: the last answer holds until it has something",
			replies: []reply{{set: "a", index: 21}, {index: 14}, {index: 14}, {index: 14}, {index: 14}, {set: "a", index: 15}},
			reads:   []string{"0", "21 1m0s", "0!", "0", "0!", "0", "15 1m0s"},
			yielded: []string{"a", "(reborn)", "a"},
		},
		{
			name:    "polled: no read blocks",
			change:  func(w *Watch[[]string]) { w.Poll = 10 * time.Second },
			replies: []reply{{set: "a", index: 1}, {set: "a", index: 1}, {set: "b", index: 1}},
			reads:   []string{"0", "0", "0", "0"},
			yielded: []string{"a", "b"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{replies: slices.Clone(test.replies), denied: test.denied, regains: test.regains}
				w := s.watch()
				if test.change != nil {
					test.change(&w)
				}
				s.follow(t, w, time.Hour)
				if !slices.Equal(s.reads, test.reads) {
					t.Errorf("reads %q, want %q", s.reads, test.reads)
				}
				if !slices.Equal(s.yielded, test.yielded) {
					t.Errorf("yielded %q, want %q", s.yielded, test.yielded)
				}
				if s.asked != test.asked {
					t.Errorf("asked %d times whether it may read, want %d", s.asked, test.asked)
				}
			})
		})
	}
}

// TestPace holds the reads to their rate, whatever Consul answers.
func TestPace(t *testing.T) {
	many := func(r reply) (all []reply) {
		for range 500 {
			all = append(all, r)
		}
		return all
	}
	for _, test := range []struct {
		name           string
		replies        []reply
		atLeast, below int // reads in a minute
	}{
		{"changes without end", many(reply{set: "a", index: 5}), 60, 63},
		{"an index that goes to and fro", append(many(reply{set: "a", index: 5})[:1:1], many(reply{set: "a", index: 1})...), 60, 63},
		{"no answer: soon followed when there is one", many(reply{err: io.EOF}), 30, 62},
		{"500: soon followed when there is a leader", many(reply{err: status(http.StatusInternalServerError)}), 30, 62},
		{"503: soon followed when there is a leader", many(reply{err: status(http.StatusServiceUnavailable)}), 30, 62},
		{"503 of a leader that limits reads", many(reply{err: limits}), 6, 20},
		{"403", many(reply{err: status(http.StatusForbidden)}), 6, 20},
		{"429: fewer still", many(reply{err: status(http.StatusTooManyRequests)}), 3, 15},
		{"400: no repetition mends it", many(reply{err: status(http.StatusBadRequest)}), 3, 15},
		{"emptied by a denial", append([]reply{{set: "a", index: 5}}, many(reply{index: 5, filtered: true})...), 6, 40},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{replies: test.replies}
				s.follow(t, s.watch(), time.Minute)
				if n := len(s.reads); n < test.atLeast || n >= test.below {
					t.Errorf("%d reads in a minute, want at least %d and less than %d", n, test.atLeast, test.below)
				}
				for i := 2; i < len(s.at); i++ {
					if d := s.at[i] - s.at[i-2]; d < 500*time.Millisecond {
						t.Errorf("reads %d to %d within %v", i-2, i, d)
					}
				}
			})
		})
	}
}

func TestBackoffBeginsAnewWhenTheFailureIsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var replies []reply
		for range 10 {
			replies = append(replies, reply{err: limits})
		}
		replies = append(replies, reply{err: io.EOF}, reply{err: limits}, reply{set: "a", index: 1})
		s := &script{replies: replies}
		s.follow(t, s.watch(), 10*time.Minute)
		for i := 11; i <= 12; i++ { // after the first of its kind
			if d := s.at[i] - s.at[i-1]; d > interval {
				t.Errorf("read %d came %v after the one before, want at most %v", i, d, interval)
			}
		}
		if d := s.at[10] - s.at[9]; d < 5*time.Second || d > 10*time.Second {
			t.Errorf("the wait after ten failures is %v, want 5 s to 10 s", d)
		}
	})
}

func TestEmptyServerIsBelievedAfterAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		replies := []reply{{set: "a", index: 21}}
		for range 1000 {
			replies = append(replies, reply{index: 14})
		}
		s := &script{replies: replies}
		w := s.watch()
		var emptied time.Duration
		s.began = time.Now()
		for set, err := range w.All(t.Context()) {
			if err == nil && len(set) == 0 {
				emptied = time.Since(s.began)
				break
			}
		}
		if emptied < rebirth || emptied > rebirth+5*time.Second {
			t.Errorf("the empty answer is believed after %v, want a minute and at most the wait between two reads", emptied)
		}
	})
}

// The options of a watch are the caller's, and are the same for all that run.
func TestOptionsAreNotChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{replies: []reply{{set: "a", index: 7}}}
		w := s.watch()
		w.Options = api.QueryOptions{Datacenter: "dc2", Token: "secret", Filter: "f"}
		read := w.Read
		w.Read = func(options *api.QueryOptions) ([]string, *api.QueryMeta, error) {
			if options.Datacenter != "dc2" || options.Token != "secret" || options.Filter != "f" {
				t.Errorf("read with %+v", options)
			}
			return read(options)
		}
		s.follow(t, w, time.Second)
		if w.Options.WaitIndex != 0 || w.Options.WaitTime != 0 || w.Options.AllowStale {
			t.Errorf("options are now %+v", w.Options)
		}
	})
}
