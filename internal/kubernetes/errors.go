package kubernetes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// The sentinels that an [Error] wraps.
var (
	ErrDenied       = errors.New("denied")         // 403, also for things that do not exist
	ErrNotFound     = errors.New("not found")      // 404: the group, the version, the resource or the object does not exist
	ErrExpired      = errors.New("expired")        // 410: the server no longer knows the resource version
	errUnauthorized = errors.New("not authorized") // 401: the token is bad, or has expired
	errUnprocessed  = errors.New("not understood") // 422
	errTooLarge     = errors.New("too large")      // more than this client reads
	errNonsense     = errors.New("not an API server's answer")
)

// Error describes a failed request or watch.
type Error struct {
	What       string        // the request
	Code       int           // the code of the response or of the Status; 0 if there was no usable response
	Reason     string        // the reason of the Status, such as "Forbidden"
	Message    string        // the message of the Status, or the beginning of a response that is none
	RetryAfter time.Duration // how long the server asks to wait; 0 if it does not
	Err        error         // a sentinel of this package, or the reason why there was no response
}

// Error implements error.
func (e *Error) Error() string {
	text := "kubernetes: " + e.What
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	if e.Code != 0 {
		text += fmt.Sprintf(" (%d", e.Code)
		if e.Reason != "" {
			text += " " + e.Reason
		}
		text += ")"
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Temporary reports whether the error may pass without a change of rights, objects or kinds: there was no answer, the server is busy or
// broken, or the token has expired and may be renewed.
func (e *Error) Temporary() bool {
	switch e.Code {
	case http.StatusUnauthorized, http.StatusRequestTimeout, http.StatusConflict, http.StatusGone, http.StatusTooManyRequests:
		return true
	}
	return e.Code < 400 || e.Code >= 500
}

// status is the object in which API servers describe errors.
type status struct {
	Kind    string `json:"kind"`
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Details struct {
		RetryAfterSeconds int `json:"retryAfterSeconds"`
		Causes            []struct {
			Reason string `json:"reason"`
		} `json:"causes"`
	} `json:"details"`
}

const (
	maxMessage    = 1 << 10 // the bytes that are kept of a message
	maxStatus     = 1 << 16 // the bytes that are read of an error response
	maxRetryAfter = 5 * time.Minute
)

// error returns the error that a Status describes.
func (s *status) error(what string) *Error {
	e := &Error{What: what, Code: s.Code, Reason: clean(s.Reason), Message: clean(s.Message)}
	if n := s.Details.RetryAfterSeconds; n > 0 {
		e.RetryAfter = seconds(n)
	}
	for _, cause := range s.Details.Causes {
		if cause.Reason == "ResourceVersionTooLarge" {
			e.Reason = cause.Reason // the code does not say this
		}
	}
	if s.Reason == "Expired" || s.Reason == "Gone" {
		e.Code = http.StatusGone
	}
	e.Err = sentinel(e.Code)
	return e
}

func sentinel(code int) error {
	switch code {
	case http.StatusForbidden:
		return ErrDenied
	case http.StatusUnauthorized:
		return errUnauthorized
	case http.StatusNotFound:
		return ErrNotFound
	case http.StatusGone:
		return ErrExpired
	case http.StatusUnprocessableEntity:
		return errUnprocessed
	}
	return nil
}

// beginning returns the beginning of a response, without the token of its request: a server that is none, such as one for debugging, may
// repeat what it was sent.
func beginning(resp *http.Response, token string) []byte {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxStatus))
	if token == "" {
		return body
	}
	return bytes.ReplaceAll(body, []byte(token), []byte("TOKEN"))
}

// refusal returns the error of a response whose status is not 200.
func refusal(what string, resp *http.Response, token string) *Error {
	body := beginning(resp, token)
	var s status
	e := &Error{What: what, Code: resp.StatusCode, Err: sentinel(resp.StatusCode), Message: clean(string(body))}
	if json.Unmarshal(body, &s) == nil && s.Kind == "Status" {
		s.Code = resp.StatusCode
		e = s.error(what)
	}
	if e.Code < 400 {
		e.Err, e.Message = errNonsense, ""
	}
	if after := retryAfter(resp.Header.Get("Retry-After")); after > 0 {
		e.RetryAfter = after
	}
	return e
}

// retryAfter parses the header Retry-After, which holds seconds or a date.
func retryAfter(value string) time.Duration {
	if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && n > 0 {
		return seconds(n)
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(0, time.Until(at)), maxRetryAfter)
	}
	return 0
}

func seconds(n int) time.Duration {
	return time.Duration(min(n, int(maxRetryAfter/time.Second))) * time.Second
}

// clean returns text of a server as one short line.
func clean(text string) string {
	if len(text) > maxMessage {
		text = text[:maxMessage] + "..."
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == '\ufffd' {
			return ' '
		}
		return r
	}, text)
	return strings.Join(strings.Fields(text), " ")
}
