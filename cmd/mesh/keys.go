package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/nosidecar/mesh/policy/jwt"
)

// keyFiles are the files of key sets, by the URI that a process would fetch them from.
type keyFiles map[string]string

// add takes URI=FILE. The URI may have an equals sign in its query.
func (k keyFiles) add(text string) error {
	i := strings.LastIndexByte(text, '=')
	if i <= 0 || i == len(text)-1 {
		return errors.New("it is not URI=FILE")
	}
	k[text[:i]] = text[i+1:]
	return nil
}

// fetched answers requests for key sets from the files.
type fetched keyFiles

// RoundTrip implements http.RoundTripper.
func (k fetched) RoundTrip(r *http.Request) (*http.Response, error) {
	file, ok := k[r.URL.String()]
	if !ok {
		return nil, errors.New("nothing is fetched: give the keys with --jwks URI=FILE")
	}
	body, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Header: make(http.Header), Body: body, Request: r}, nil
}

// read reads the files with the keys of tokens. A source without a file has no keys, and its tokens are refused, as before the
// first fetch.
func (k keyFiles) read(tokens *jwt.Authenticator, remotes *jwt.Remotes) error {
	if tokens == nil {
		return nil
	}
	sources := tokens.Sources()
	outcomes := make(chan jwt.State, 10*len(sources))
	remotes.OnFetch = func(s jwt.State) {
		select {
		case outcomes <- s:
		default: // there are enough outcomes
		}
	}
	remotes.Use(tokens)
	for waiting := len(sources); waiting > 0; waiting-- {
		if s := <-outcomes; s.Err != nil && k[s.Source.URI] != "" {
			return fmt.Errorf("%s: %w", k[s.Source.URI], s.Err)
		}
	}
	return nil
}
