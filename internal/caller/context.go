package caller

import (
	"context"
	"reflect"
)

// SameContext reports whether two contexts are one, also where they are of a type that cannot be compared: then they are not.
func SameContext(a, b context.Context) bool {
	switch t := reflect.TypeOf(a); {
	case t != reflect.TypeOf(b):
		return false
	case t == nil || t.Kind() == reflect.Pointer:
		return a == b
	case !t.Comparable():
		return false
	}
	return equal(a, b)
}

// equal compares values that may hold others which cannot be compared.
func equal(a, b context.Context) (same bool) {
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a == b
}
