//! Every directive of squid.conf, and what becomes of it.

use super::{
    Line, fields, logs, names, peers, pools, ports,
    settings::{self, Translation},
};

/// A directive.
pub(super) struct Directive {
    pub(super) name: &'static str,
    pub(super) fate: Fate,
}

/// What becomes of a directive.
pub(super) enum Fate {
    /// It means here what it means there.
    Used(fn(&mut Translation<'_>, &Line) -> Result<(), String>),
    /// It cannot matter here, for this reason.
    Ignored(&'static str),
    /// It would matter, and nothing here does it.
    Unsupported(&'static str),
}

/// The directive of this name.
pub(super) fn find(name: &str) -> Option<Directive> {
    if let Some((name, apply)) = USED.iter().find(|(known, _)| *known == name) {
        return Some(Directive {
            name,
            fate: Fate::Used(*apply),
        });
    }
    for (why, names) in IGNORED {
        if let Some(name) = names.split_whitespace().find(|known| *known == name) {
            return Some(Directive {
                name,
                fate: Fate::Ignored(why),
            });
        }
    }
    for (why, names) in UNSUPPORTED {
        if let Some(name) = names.split_whitespace().find(|known| *known == name) {
            return Some(Directive {
                name,
                fate: Fate::Unsupported(why),
            });
        }
    }
    None
}

/// The names of all of them.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let used = USED.iter().map(|(name, _)| *name);
    let others = IGNORED.iter().chain(UNSUPPORTED);
    used.chain(others.flat_map(|(_, names)| names.split_whitespace()))
}

type Apply = fn(&mut Translation<'_>, &Line) -> Result<(), String>;

const USED: &[(&str, Apply)] = &[
    ("access_log", logs::access_log),
    ("acl", settings::acl),
    ("always_direct", peers::always_direct),
    ("append_domain", names::append_domain),
    ("auth_param", settings::auth_param),
    ("cache_access_log", logs::access_log),
    ("cache_peer", peers::cache_peer),
    ("cache_peer_access", peers::cache_peer_access),
    (
        "client_ip_max_connections",
        settings::client_ip_max_connections,
    ),
    (
        "client_idle_pconn_timeout",
        settings::client_idle_pconn_timeout,
    ),
    ("client_lifetime", settings::client_lifetime),
    ("connect_timeout", settings::connect_timeout),
    ("delay_access", pools::delay_access),
    ("delay_class", pools::delay_class),
    ("delay_parameters", pools::delay_parameters),
    ("delay_pools", pools::delay_pools),
    ("deny_info", settings::deny_info),
    ("dns_nameservers", names::dns_nameservers),
    ("dns_retransmit_interval", names::dns_retransmit_interval),
    ("dns_v4_first", names::dns_v4_first),
    ("forward_timeout", settings::forward_timeout),
    ("forwarded_for", fields::forwarded_for),
    ("hosts_file", names::hosts_file),
    ("http_access", settings::http_access),
    ("http_port", ports::http_port),
    ("https_port", ports::https_port),
    ("logformat", logs::logformat),
    ("negative_dns_ttl", names::negative_dns_ttl),
    ("never_direct", peers::never_direct),
    ("nonhierarchical_direct", peers::nonhierarchical_direct),
    ("pconn_timeout", settings::server_idle_pconn_timeout),
    (
        "persistent_request_timeout",
        settings::client_idle_pconn_timeout,
    ),
    ("positive_dns_ttl", names::positive_dns_ttl),
    ("prefer_direct", peers::prefer_direct),
    ("proxy_protocol_access", ports::proxy_protocol_access),
    ("read_timeout", settings::read_timeout),
    ("reply_header_access", fields::reply_header_access),
    ("request_header_access", fields::request_header_access),
    ("request_timeout", settings::request_timeout),
    ("shutdown_lifetime", settings::shutdown_lifetime),
    (
        "server_idle_pconn_timeout",
        settings::server_idle_pconn_timeout,
    ),
    ("tcp_outgoing_address", settings::tcp_outgoing_address),
    ("tcp_outgoing_mark", settings::tcp_outgoing_mark),
    ("tcp_outgoing_tos", settings::tcp_outgoing_tos),
    ("via", fields::via),
];

/// What cannot matter, by reason.
const IGNORED: &[(&str, &str)] = &[
    (
        "since there is no cache",
        "broken_vary_encoding cache cache_dir cache_mem cache_miss_revalidate cache_replacement_policy \
         cache_store_log cache_swap_high cache_swap_log cache_swap_low cache_swap_state cache_vary \
         collapsed_forwarding collapsed_forwarding_access digest_bits_per_entry digest_generation \
         digest_rebuild_chunk_percentage digest_rebuild_period digest_rewrite_period \
         digest_swapout_chunk_size diskd_program hierarchy_stoplist ignore_ims_on_miss \
         max_open_disk_fds max_stale maximum_object_size maximum_object_size_in_memory \
         memory_cache_mode memory_cache_shared memory_pools memory_pools_limit \
         memory_replacement_policy minimum_expiry_time minimum_object_size negative_ttl offline_mode \
         quick_abort_max quick_abort_min quick_abort_pct range_offset_limit read_ahead_gap \
         refresh_all_ims refresh_pattern refresh_stale_hit reload_into_ims send_hit \
         shared_memory_locking shared_transient_entries_limit store_avg_object_size \
         store_dir_select_algorithm store_id_access store_id_bypass store_id_children store_id_extras \
         store_id_program store_miss store_objects_per_bucket unlinkd_program update_headers \
         vary_ignore_expire",
    ),
    (
        "since there are no neighbour caches",
        "background_ping_rate dead_peer_timeout htcp_access htcp_clr_access htcp_port icp_access \
         icp_hit_stale icp_port icp_query_timeout log_icp_queries maximum_icp_query_timeout \
         mcast_groups mcast_icp_query_timeout mcast_miss_addr mcast_miss_encode_key mcast_miss_port \
         mcast_miss_ttl minimum_direct_hops minimum_direct_rtt minimum_icp_query_timeout netdb_filename \
         netdb_high netdb_low netdb_ping_period peer_connect_timeout pinger_enable \
         pinger_program query_icmp test_reachability udp_incoming_address \
         udp_outgoing_address wccp2_address wccp2_assignment_method wccp2_forwarding_method \
         wccp2_rebuild_wait wccp2_return_method wccp2_router wccp2_service wccp2_service_info \
         wccp2_weight wccp_address wccp_router wccp_version",
    ),
    (
        "since there is no content adaptation",
        "adaptation_access adaptation_masterx_shared_names adaptation_meta adaptation_send_client_ip \
         adaptation_send_username adaptation_service_chain adaptation_service_iteration_limit \
         adaptation_service_set adaptation_uses_indirect_client ecap_enable ecap_service icap_206_enable \
         icap_access icap_class icap_client_username_encode icap_client_username_header \
         icap_connect_timeout icap_default_options_ttl icap_enable icap_io_timeout icap_log \
         icap_persistent_connections icap_preview_enable icap_preview_size icap_retry icap_retry_limit \
         icap_service icap_service_failure_limit icap_service_revival_delay loadable_modules",
    ),
    (
        "since TLS is not looked into",
        "ssl_bump ssl_engine ssl_unclean_shutdown sslcrtd_children sslcrtd_program \
         sslcrtvalidator_children sslcrtvalidator_program sslpassword_program sslproxy_cafile \
         sslproxy_capath sslproxy_cert_adapt sslproxy_cert_error sslproxy_cert_sign \
         sslproxy_cert_sign_hash sslproxy_cipher sslproxy_client_certificate sslproxy_client_key \
         sslproxy_flags sslproxy_foreign_intermediate_certs sslproxy_options \
         sslproxy_session_cache_size sslproxy_session_ttl sslproxy_version tls_outgoing_options",
    ),
    (
        "since FTP, Gopher and WAIS are not spoken",
        "ftp_client_idle_timeout ftp_eprt ftp_epsv ftp_epsv_all ftp_list_width ftp_passive \
         ftp_sanitycheck ftp_telnet_protocol ftp_user wais_relay_host wais_relay_port",
    ),
    (
        "since plain HTTP is read and kept alive in another way",
        "broken_posts check_hostnames client_persistent_connections \
         client_request_buffer_max_size detect_broken_pconn force_request_body_continuation \
         http_upgrade_request_protocols log_mime_hdrs mime_table \
         persistent_connection_after_error pconn_lifetime \
         pipeline_prefetch relaxed_header_parser reply_header_max_size \
         request_entities request_header_max_size server_pconn_for_nonretriable \
         server_persistent_connections strip_query_terms uri_whitespace",
    ),
    (
        "since it is about how Squid runs, not what it does",
        "announce_file announce_host announce_period announce_port buffered_logs cache_effective_group \
         cache_effective_user cache_log cache_mgr cachemgr_passwd chroot client_db coredump_dir \
         cpu_affinity_map debug_options email_err_data err_html_text err_page_stylesheet \
         error_default_language error_directory error_log_languages error_map global_internal_static \
         half_closed_clients high_memory_warning high_page_fault_warning high_response_time_warning \
         hopeless_kid_revival_delay hostname_aliases httpd_suppress_version_string icon_directory \
         incoming_dns_average incoming_tcp_average incoming_udp_average logfile_daemon logfile_rotate \
         mail_from mail_program max_filedescriptors max_filedesc min_dns_poll_cnt min_tcp_poll_cnt \
         min_udp_poll_cnt pid_filename short_icon_urls sleep_after_fork \
         snmp_access snmp_incoming_address snmp_outgoing_address snmp_port stats_collection \
         tcp_recv_bufsize umask unique_hostname visible_hostname \
         windows_ipaddrchangemonitor workers",
    ),
    (
        "since names are resolved in another way",
        "allow_underscore dns_defnames dns_multicast_local dns_packet_max dns_testnames dns_timeout \
         dns_v4_fallback fqdncache_size happy_eyeballs_connect_gap happy_eyeballs_connect_limit \
         happy_eyeballs_connect_timeout ignore_unknown_nameservers ipcache_high ipcache_low ipcache_size",
    ),
    (
        "since it has no effect here",
        "accept_filter acl_uses_indirect_client authenticate_cache_garbage_interval authenticate_ip_ttl \
         authenticate_ttl client_dst_passthru client_netmask configuration_includes_quoted_values \
         connect_retries delay_initial_bucket_level delay_pool_uses_indirect_client eui_lookup \
         forward_max_tries host_verify_strict httpd_accel_surrogate_id http_accel_surrogate_remote \
         ident_lookup_access ident_timeout log_uses_indirect_client note qos_flows \
         request_start_timeout retry_on_error server_http11 spoof_client_ip \
         tproxy_uses_indirect_client write_timeout zph_local",
    ),
];

/// What would matter, by reason.
const UNSUPPORTED: &[(&str, &str)] = &[
    (
        "it left Squid long ago; write cache_peer_access",
        "cache_peer_domain neighbor_type_domain",
    ),
    (
        "there are no helper programs",
        "external_acl_type external_refresh_check location_rewrite_program url_rewrite_access \
         url_rewrite_bypass url_rewrite_children url_rewrite_concurrency url_rewrite_extras \
         url_rewrite_host_header url_rewrite_program url_rewrite_timeout",
    ),
    (
        "there is one list of rules; write them as http_access",
        "adapted_http_access http_access2 miss_access",
    ),
    ("FTP is not spoken; use http_port", "ftp_port"),
    (
        "the client is who connects, or whom a PROXY header announces",
        "follow_x_forwarded_for",
    ),
    (
        "responses are not judged, and bodies have no limit",
        "http_reply_access reply_body_max_size request_body_max_size",
    ),
    (
        "fields are not made or changed; request_header_access and reply_header_access can take them away",
        "reply_header_add reply_header_replace request_header_add request_header_replace",
    ),
    (
        "packets to clients are not marked",
        "clientside_tos mark_client_connection mark_client_packet",
    ),
    ("there is one scheme, Basic, for everybody", "auth_schemes"),
    ("what is no HTTP is refused", "on_unsupported_protocol"),
    (
        "bandwidth is limited by delay_pools",
        "client_delay_access client_delay_initial_bucket_level client_delay_parameters \
         client_delay_pools response_delay_pool response_delay_pool_access",
    ),
    (
        "it left Squid long ago; access_log says what is logged",
        "emulate_httpd_log forward_log log_access log_fqdn log_icap log_ip_on_direct referer_log \
         useragent_log",
    ),
];
