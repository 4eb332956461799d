package jwt

import (
	"context"
	"maps"
	"net/http"
	"time"

	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/incoming"
)

// Handler is an http.Handler that refuses requests with a bad token and passes the others to the next handler, which learns from
// [ClaimsOf] who the user is. Its fields must not be changed after the first request.
type Handler struct {
	// Next serves the requests. It must be set.
	Next http.Handler

	// Authenticator verifies tokens. It must be set.
	Authenticator *Authenticator
}

// ClaimsOf returns the claims of the user whose request a handler serves. They are nil if the request had no token.
func ClaimsOf(ctx context.Context) *Claims {
	claims, _ := ctx.Value(admission.UserKey{}).(*Claims)
	return claims
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	result := h.Authenticator.Authenticate(r.Context(), r, time.Now())
	if result.Err != nil {
		result.Err.Refuse(w, r, h.Authenticator.Realm(r))
		return
	}
	ctx := r.Context()
	if result.Claims != nil {
		ctx = context.WithValue(ctx, admission.UserKey{}, result.Claims)
	}
	seen := r.WithContext(ctx)
	if header := result.Header(r.Header); header != nil {
		seen.Header = header
	}
	result.HideToken(seen)
	if incoming.MayHaveTrailers(r) {
		incoming.CleanTrailers(r, seen, nil, h.Authenticator)
	}
	defer incoming.Return(r, seen)
	h.Next.ServeHTTP(w, seen)
}

// HideToken takes a token that is not forwarded out of the URL of seen, a copy of the request that was authenticated, and out of the form,
// if that was parsed already.
func (r *Result) HideToken(seen *http.Request) {
	for _, p := range r.used {
		if p.kind != inParam {
			continue
		}
		if query := withoutParam(seen.URL.RawQuery, p.name); query != seen.URL.RawQuery {
			hidden := *seen.URL
			hidden.RawQuery = query
			seen.URL, seen.RequestURI = &hidden, hidden.RequestURI()
		}
		if seen.Form != nil {
			form := maps.Clone(seen.Form)
			if of := seen.PostForm[p.name]; len(of) > 0 { // from the body, in which tokens are not looked for
				form[p.name] = of
			} else {
				delete(form, p.name)
			}
			seen.Form = form
		}
	}
}

// Refuse answers a request with the status, the text, and the realm in WWW-Authenticate (RFC 6750, section 3). A gRPC call is answered with
// the code of gRPC for the status.
func (e *Error) Refuse(w http.ResponseWriter, r *http.Request, realm string) {
	w.Header()["Www-Authenticate"] = []string{`Bearer realm="` + realm + `", error="invalid_token"`}
	code := "16" // UNAUTHENTICATED
	if e.Status() == http.StatusForbidden {
		code = "7" // PERMISSION_DENIED
	}
	incoming.Refuse(w, r, e.Status(), code, e.text)
}
