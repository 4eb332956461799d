Kind = "service-resolver"
Name = "web"
Subsets = {
  v1 = {
    Filter = "Service.Meta.version == v1"
  }
  v2 = {
    Filter = "Service.Meta.version == v2"
  }
}
Failover = {
  v2 = {
    ServiceSubset = "v1"
  }
}
