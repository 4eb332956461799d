package caller

import (
	"context"
	"reflect"
)

// SameContext reports whether two contexts are the same. Unlike ==, it does not panic if their type is not comparable; it then returns
// false.
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

// equal compares contexts that may contain values of types that are not comparable.
func equal(a, b context.Context) (same bool) {
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a == b
}
