// Package pause waits for a duration, or until a context ends.
package pause

import (
	"context"
	"time"
)

// For waits for d. If ctx ends first, it returns the cause. If d is 0 or less, it only checks whether ctx has ended.
func For(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
