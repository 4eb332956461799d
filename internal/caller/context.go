package caller

import (
	"context"
	"reflect"
)

// SameContext reports whether two contexts are the same. Unlike ==, it does not panic if they contain values of types that are not
// comparable; it then returns false.
func SameContext(a, b context.Context) bool {
	switch t := reflect.TypeOf(a); {
	case t == background:
		return reflect.TypeOf(b) == background
	case t != nil && t.Kind() == reflect.Pointer: // as nearly all others are
		return a == b
	}
	return same(a, b)
}

var background = reflect.TypeOf(context.Background())

func same(a, b context.Context) (same bool) {
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a == b
}
