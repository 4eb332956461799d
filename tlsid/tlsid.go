package tlsid

import (
	"context"
	"iter"
	"strconv"
)

// Source yields the identity of this process. Implementations must be safe for concurrent use.
type Source interface {
	// Watch yields the identity now and after each rotation, until ctx ends or the caller stops. It blocks between
	// rotations and leaves no goroutine behind.
	//
	// An error changes nothing: the caller keeps the identity it has, and Watch keeps trying at its own pace. A Watch that
	// ends before ctx does has nothing more to yield.
	//
	// A [Keeper], and so a mesh, runs Watch on a goroutine of its own and does not recover from a panic there. If Watch does not
	// block, it takes 100 identities at once and then 10 a second, 10 errors at once and then one a second.
	Watch(ctx context.Context) iter.Seq2[*Identity, error]
}

// Mode is how a port of a server treats TLS, as PeerAuthentication says. The zero value is Permissive.
type Mode uint8

const (
	// Permissive accepts mutual TLS and plaintext on the same port. A plaintext peer has no identity.
	Permissive Mode = iota

	// Strict accepts mutual TLS only.
	Strict

	// Disable accepts plaintext only.
	Disable
)

var modes = [...]string{Permissive: "PERMISSIVE", Strict: "STRICT", Disable: "DISABLE"}

// String returns the mode as documents spell it, such as "STRICT".
func (m Mode) String() string {
	if int(m) < len(modes) {
		return modes[m]
	}
	return "Mode(" + strconv.Itoa(int(m)) + ")"
}
