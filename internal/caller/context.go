package caller

import (
	"context"
	"reflect"
)

// SameContext reports whether two contexts are the same. Unlike ==, it does not panic if they contain values of types that are not
// comparable; it then returns false.
func SameContext(a, b context.Context) bool {
	if t := reflect.TypeOf(a); t != nil && t.Kind() == reflect.Pointer { // as nearly all are
		return a == b
	}
	return same(a, b)
}

func same(a, b context.Context) (same bool) {
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a == b
}
