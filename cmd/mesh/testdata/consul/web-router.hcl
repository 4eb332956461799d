Kind = "service-router"
Name = "web"
Routes = [
  {
    Match {
      HTTP {
        PathPrefix = "/api"
      }
    }
    Destination {
      Service        = "api"
      PrefixRewrite  = "/"
      RequestTimeout = "3s"
      NumRetries     = 2
      RetryOn        = ["5xx"]
    }
  }
]
