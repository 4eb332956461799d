package breaker

// For tests outside.
var ResultOf = resultOf
