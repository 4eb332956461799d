package tlsid

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	// ErrNoIdentity means that the source has not yielded an identity yet. The error that wraps it includes the source's
	// last error.
	ErrNoIdentity = errors.New("tlsid: no identity")

	// ErrNoPeer means that there is no peer certificate to verify: the connection is not TLS, or the peer presented none.
	ErrNoPeer = errors.New("tlsid: peer presented no certificate")
)

// ExpiredError says that a certificate, or one it was issued by, has expired. By itself it is about the identity of this
// process; inside a [*PeerError] it is about the peer.
type ExpiredError struct {
	ID       spiffeid.ID
	NotAfter time.Time
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("tlsid: certificate of %s expired at %s", e.ID, e.NotAfter.UTC().Format(time.RFC3339))
}

// NotYetValidError says that a certificate, or one it was issued by, is not valid yet: the clock of this machine is
// behind that of the issuer. By itself it is about the identity of this process; inside a [*PeerError] it is about the
// peer.
type NotYetValidError struct {
	ID        spiffeid.ID
	NotBefore time.Time
	Skew      time.Duration // how far this machine's clock is before NotBefore
}

func (e *NotYetValidError) Error() string {
	return fmt.Sprintf("tlsid: certificate of %s is not valid until %s, in %s: is a clock wrong?",
		e.ID, e.NotBefore.UTC().Format(time.RFC3339), e.Skew.Round(time.Millisecond))
}

// noIdentityError is ErrNoIdentity with the reason.
type noIdentityError struct{ last error }

func (e *noIdentityError) Error() string { return ErrNoIdentity.Error() + ": " + unprefixed(e.last) }

func (e *noIdentityError) Unwrap() []error { return []error{ErrNoIdentity, e.last} }

// unprefixed returns the text of an error without its prefix, for another error of this package to wrap: the prefix appears
// once.
func unprefixed(err error) string { return strings.TrimPrefix(err.Error(), "tlsid: ") }

// PeerError says why the certificate of a peer was refused.
type PeerError struct {
	ID  spiffeid.ID // who the certificate says the peer is; zero if it has no SPIFFE ID
	Err error
}

func (e *PeerError) Error() string {
	why := unprefixed(e.Err)
	if e.ID.IsZero() {
		return "tlsid: peer refused: " + why
	}
	return fmt.Sprintf("tlsid: peer %s refused: %s", e.ID, why)
}

func (e *PeerError) Unwrap() error { return e.Err }

// MismatchError says that a peer proved its identity, but is not the peer that was expected.
type MismatchError struct {
	Expected  Expected
	Presented spiffeid.ID
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("tlsid: peer is %s, expected %s", e.Presented, e.Expected)
}
