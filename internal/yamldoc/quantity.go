package yamldoc

import (
	"math/big"
	"strconv"
	"strings"
)

// Quantity is a number in the format of Kubernetes: 90, "90", "500m" (a half), "1.5k" or "2Ki".
type Quantity struct {
	// Milli is the number in thousandths, rounded up.
	Milli int64

	// Whole says that the document has an integer without quotes and suffix.
	Whole bool

	// Set says that the document sets the quantity.
	Set bool
}

// maxQuantity bounds quantities so that sums and products of a few of them do not overflow.
const maxQuantity = 1 << 40

// scales has the factors of the suffixes.
var scales = map[string]*big.Rat{
	"":  big.NewRat(1, 1),
	"n": big.NewRat(1, 1e9), "u": big.NewRat(1, 1e6), "m": big.NewRat(1, 1e3),
	"k": big.NewRat(1e3, 1), "M": big.NewRat(1e6, 1), "G": big.NewRat(1e9, 1), "T": big.NewRat(1e12, 1),
	"Ki": big.NewRat(1<<10, 1), "Mi": big.NewRat(1<<20, 1), "Gi": big.NewRat(1<<30, 1), "Ti": big.NewRat(1<<40, 1),
}

// parseQuantity returns s in thousandths, or what is wrong with it.
func parseQuantity(s string) (milli int64, message string) {
	const form = "is not a quantity: write it like 90 or 500m"
	digits := strings.TrimRight(s, "numkKMGTi")
	factor := scales[s[len(digits):]]
	mantissa, exponent, scientific := strings.Cut(strings.ToLower(digits), "e")
	switch {
	case factor == nil, scientific && len(digits) < len(s):
		return 0, form
	case len(mantissa) > 32 || strings.Trim(mantissa, "+-.0123456789") != "":
		return 0, form
	case scientific:
		// A short text must not become a huge number.
		if n, err := strconv.Atoi(exponent); err != nil || n < -18 || n > 18 {
			return 0, form
		}
	}
	value, ok := new(big.Rat).SetString(digits)
	if !ok {
		return 0, form
	}
	value.Mul(value, factor).Mul(value, big.NewRat(1000, 1))
	rounded, rest := new(big.Int).QuoRem(value.Num(), value.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		rounded.Add(rounded, big.NewInt(1))
	}
	if !rounded.IsInt64() || rounded.Int64() > maxQuantity || rounded.Int64() < -maxQuantity {
		return 0, "is out of range"
	}
	return rounded.Int64(), ""
}
