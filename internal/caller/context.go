package caller

import "context"

// SameContext reports whether two contexts are the same. Unlike ==, it does not panic if they contain values of types that are not
// comparable; it then returns false.
func SameContext(a, b context.Context) (same bool) {
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a == b
}
