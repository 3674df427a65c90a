//! What RFC 9113 demands with MUST and MUST NOT in sections 3 to 8 of an endpoint of our kind, and which test shows it.
//!
//! In the order of the standard. The last column names tests, or says after «not ours» why a rule does not concern us:
//! there is no server push, no tunnel by CONNECT, no upgrade from HTTP/1.1, and we are no intermediary. A test below
//! checks that each named test exists. Tests that begin with `s` and a section are in `connection/rfc_tests.rs`, those
//! that begin with `row_` in `tests/http2_attacks_*.rs`.
//!
//! | section | rule | test |
//! | --- | --- | --- |
//! | 3.2 | `h2c` is never offered in TLS, only `h2` | `row_36_both_versions_of_tls_need_alpn` |
//! | 3.2, 3.3 | both ends send a preface, over TLS and over TCP | `client_opens_with_preface_settings_and_window`, `s3_4_server_begins_with_settings`, `row_36_both_versions_of_tls_need_alpn` |
//! | 3.3 | HTTP/2 over TLS is agreed on by ALPN | `row_36_both_versions_of_tls_need_alpn`, `server_without_alpn_is_refused` |
//! | 3.4 | the client's 24 bytes are followed by SETTINGS | `client_opens_with_preface_settings_and_window` |
//! | 3.4 | SETTINGS is the first frame of a server | `s3_4_server_begins_with_settings` |
//! | 3.4 | the peer's first SETTINGS is acknowledged after our preface | `s3_4_settings_are_acknowledged_after_our_preface` |
//! | 3.4 | a wrong preface is a connection error PROTOCOL_ERROR | `connection_violations_end_the_connection`, `server_refuses_what_clients_must_not_do` |
//! | 4.1 | no frame above 16,384 unless the peer allows it | `s4_1_no_frame_is_larger_than_the_least_limit` |
//! | 4.1 | frames of unknown types are discarded | `s4_1_unknown_types_and_flags_are_ignored`, `row_28_padding_priority_and_what_is_unknown` |
//! | 4.1 | unused flags are ignored, and unset when sending | `s4_1_unknown_types_and_flags_are_ignored`, `writes_frames_as_the_standard_shows_them` |
//! | 4.1 | the reserved bit is ignored, and unset when sending | `reads_header_and_ignores_the_reserved_bit`, `writes_frames_as_the_standard_shows_them` |
//! | 4.2 | frames of 16,384 bytes can be received | `s4_2_frames_of_the_full_size_are_taken` |
//! | 4.2 | a frame that is too large or too small is a FRAME_SIZE_ERROR | `decides_sizes_on_the_header`, `row_17_frames_that_are_too_large`, `refuses_padding_that_is_as_long_as_the_payload` |
//! | 4.2 | of the connection, where the frame can alter its state | `row_17_frames_that_are_too_large`, `row_17_frames_that_are_too_large_for_our_server` |
//! | 4.3 | field blocks are sent as one sequence of frames | `s4_3_blocks_are_sent_in_one_piece`, `splits_a_long_block_into_continuations` |
//! | 4.3 | a block that is not decompressed ends the connection (ours says ENHANCE_YOUR_CALM, by section 5.4) | `row_05_no_connection_is_kept_with_a_block_half_read`, `row_01_continuation_flood` |
//! | 4.3 | blocks that are discarded are decompressed | `s4_3_field_blocks_of_ended_streams_keep_the_table_in_step` |
//! | 4.3 | a decoding error is a connection error COMPRESSION_ERROR | `row_08_broken_huffman_code`, `row_09_indexes_and_table_sizes`, `row_09_broken_field_blocks_on_our_server` |
//! | 4.3.1 | after a smaller SETTINGS_HEADER_TABLE_SIZE the next block begins with an update | `s4_3_1_a_smaller_table_is_told_in_the_next_block`, `tells_a_changed_table_size_at_the_start_of_the_next_block` |
//! | 4.3.1 | a block without the update that is owed is a COMPRESSION_ERROR | not ours: we never lower the table, which `row_09_indexes_and_table_sizes` checks |
//! | 5.1 | idle: only HEADERS and PRIORITY, and HEADERS only from a client | `s5_1_idle_streams_take_only_headers_and_priority` |
//! | 5.1 | reserved: what may be sent and received | not ours: no push, and PUSH_PROMISE ends the connection |
//! | 5.1 | half-closed (remote): other than WINDOW_UPDATE, PRIORITY and RST_STREAM is a stream error STREAM_CLOSED | `s5_1_half_closed_remote_takes_no_data_or_headers` |
//! | 5.1 | closed: nothing but PRIORITY is sent | `s5_1_nothing_is_sent_on_a_closed_stream` |
//! | 5.1 | closed by our reset: late frames are processed as far as they concern the connection | `late_frames_after_our_reset_are_ignored_and_their_bytes_given_back`, `s4_3_field_blocks_of_ended_streams_keep_the_table_in_step` |
//! | 5.1.1 | clients use odd identifiers | `s5_1_1_identifiers_only_grow`, `server_refuses_what_clients_must_not_do` |
//! | 5.1.1 | a new identifier is greater than all before; another is a connection error PROTOCOL_ERROR | `s5_1_1_identifiers_only_grow`, `s5_1_1_a_lower_or_even_identifier_ends_the_connection` |
//! | 5.1.2 | the peer's limit of streams is not exceeded | `peer_limits_open_streams` |
//! | 5.1.2 | a stream above our limit is a stream error | `server_refuses_streams_beyond_its_limit_and_survives`, `row_13_more_streams_than_we_allow` |
//! | 5.2.1 | senders keep to the windows | `sending_follows_both_windows_and_changes_of_settings` |
//! | 5.2.2 | frames are read as soon as they are there | `server_that_opens_no_window_leaves_other_calls_alone`, `row_27_a_server_that_never_reads_meets_the_deadline` |
//! | 5.4 | a connection error is reported | `connection_violations_end_the_connection` |
//! | 5.4.1 | the transport is closed after a GOAWAY for an error | `server_that_asks_and_does_not_read_is_cut_off`, `our_server_hangs_up_on_what_is_not_http2` |
//! | 5.4.2 | whoever resets is prepared for what was under way | `late_frames_after_our_reset_are_ignored_and_their_bytes_given_back` |
//! | 5.4.2 | no RST_STREAM in answer to RST_STREAM | `s5_4_2_a_reset_is_never_answered_by_one`, `row_13_resets_and_stream_errors` |
//! | 5.4.2 | (SHOULD) one RST_STREAM a stream | `s5_4_2_one_reset_is_sent_for_each_stream`, `s5_4_2_late_frames_of_hundreds_of_reset_streams_are_no_errors` |
//! | 5.5 | unknown values and frames are ignored | `s4_1_unknown_types_and_flags_are_ignored`, `last_value_wins_and_unknown_settings_are_ignored` |
//! | 5.5 | extension frames inside a field block are a connection error PROTOCOL_ERROR | `row_28_padding_priority_and_what_is_unknown`, `row_28_unknown_frames_on_our_server` |
//! | 5.5 | extensions are negotiated, and off at first | not ours: we have none |
//! | 6.1, 6.2 | padding is sent as zeros | not ours: we send no padding |
//! | 6.1 | DATA on stream 0 is a connection error PROTOCOL_ERROR | `refuses_frames_on_the_wrong_kind_of_stream` |
//! | 6.1 | DATA on a stream that is not open or half-closed (local) is a stream error STREAM_CLOSED | `s6_1_data_on_a_closed_stream_is_a_stream_error`, `s5_1_half_closed_remote_takes_no_data_or_headers` |
//! | 6.1, 6.2 | padding as long as the payload is a connection error PROTOCOL_ERROR | `refuses_padding_that_is_as_long_as_the_payload`, `row_28_padding_priority_and_what_is_unknown` |
//! | 6.2, 6.10 | without END_HEADERS only CONTINUATION of the same stream follows, else a connection error PROTOCOL_ERROR | `connection_violations_end_the_connection`, `s4_3_blocks_are_sent_in_one_piece` |
//! | 6.2 | HEADERS on stream 0 is a connection error PROTOCOL_ERROR | `refuses_frames_on_the_wrong_kind_of_stream` |
//! | 6.3 | PRIORITY on stream 0 is a connection error PROTOCOL_ERROR | `refuses_frames_on_the_wrong_kind_of_stream` |
//! | 6.3 | PRIORITY of another length than 5 is a stream error FRAME_SIZE_ERROR | `stream_violations_end_only_the_stream` |
//! | 6.4 | nothing is sent on a stream that the peer has reset | `s6_4_nothing_is_sent_after_the_peer_reset_a_stream` |
//! | 6.4 | whoever has sent RST_STREAM processes what was under way | `late_frames_after_our_reset_are_ignored_and_their_bytes_given_back` |
//! | 6.4 | RST_STREAM on stream 0 is a connection error PROTOCOL_ERROR | `refuses_frames_on_the_wrong_kind_of_stream` |
//! | 6.4 | RST_STREAM is not sent on an idle stream | `s6_4_no_reset_on_an_idle_stream` |
//! | 6.4 | RST_STREAM on an idle stream is a connection error PROTOCOL_ERROR | `s5_1_idle_streams_take_only_headers_and_priority` |
//! | 6.4 | RST_STREAM of another length than 4 is a connection error FRAME_SIZE_ERROR | `decides_sizes_on_the_header` |
//! | 6.5 | both ends send SETTINGS at the start | `client_opens_with_preface_settings_and_window`, `s3_4_server_begins_with_settings` |
//! | 6.5 | all settings are supported: table size | `s4_3_1_a_smaller_table_is_told_in_the_next_block`, `row_10_our_encoder_keeps_a_small_table` |
//! | 6.5 | streams, window, frame size | `peer_limits_open_streams`, `sending_follows_both_windows_and_changes_of_settings`, `s4_1_no_frame_is_larger_than_the_least_limit` |
//! | 6.5 | an acknowledgement is empty; another is a connection error FRAME_SIZE_ERROR | `refuses_broken_settings`, `writes_frames_as_the_standard_shows_them` |
//! | 6.5 | SETTINGS on a stream is a connection error PROTOCOL_ERROR | `refuses_frames_on_the_wrong_kind_of_stream` |
//! | 6.5 | SETTINGS that is badly formed ends the connection, of a length that 6 does not divide with FRAME_SIZE_ERROR | `refuses_broken_settings`, `row_12_settings_with_thousands_of_entries` |
//! | 6.5.2 | no PUSH_PROMISE is sent to a client that forbids it; a server never sets ENABLE_PUSH to 1 | `s3_4_server_begins_with_settings`; there is no code that sends PUSH_PROMISE |
//! | 6.5.2, 6.6 | PUSH_PROMISE after ENABLE_PUSH 0 is a connection error PROTOCOL_ERROR | `row_25_push_promise` |
//! | 6.5.2 | ENABLE_PUSH above 1, or 1 from a server, INITIAL_WINDOW_SIZE above 2^31-1, MAX_FRAME_SIZE outside its range | `refuses_values_outside_their_range` |
//! | 6.5.2 | unknown settings are ignored | `last_value_wins_and_unknown_settings_are_ignored`, `row_12_settings_with_thousands_of_entries` |
//! | 6.5.3 | values are applied in their order and at once, then acknowledged at once | `s6_5_3_each_settings_frame_is_applied_and_acknowledged_in_order` |
//! | 6.5.3 | (plain sense) an acknowledgement is not acknowledged | `s6_5_3_an_acknowledgement_is_not_answered` |
//! | 6.6 | how PUSH_PROMISE is sent, and which are legal | not ours: none is sent, and each that is received ends the connection |
//! | 6.7 | PING has 8 bytes; another length is a connection error FRAME_SIZE_ERROR | `decides_sizes_on_the_header`, `writes_frames_as_the_standard_shows_them` |
//! | 6.7 | PING is answered with ACK and its payload, and an answer is not answered | `s6_7_ping_is_answered_with_its_payload_and_an_answer_is_not` |
//! | 6.7 | (SHOULD) the answer goes before other frames | `s6_7_ping_goes_before_data` |
//! | 6.7 | PING on a stream is a connection error PROTOCOL_ERROR | `refuses_frames_on_the_wrong_kind_of_stream` |
//! | 6.8 | no stream is opened after GOAWAY | `go_away_tells_what_was_not_processed`, `retry_not_when_the_server_goes_away_at_or_above_our_stream` |
//! | 6.8 | GOAWAY on a stream is a connection error PROTOCOL_ERROR | `refuses_frames_on_the_wrong_kind_of_stream` |
//! | 6.8 | the last stream is never raised | `s6_8_our_last_stream_never_rises`, `go_away_tells_what_was_not_processed` |
//! | 6.8 | field blocks and DATA of streams above it still count | `s6_8_streams_after_our_goaway_are_refused_and_counted` |
//! | 6.8 | debug data is guarded | `s6_8_debug_data_is_cut_and_made_printable` |
//! | 6.9 | frames that flow control does not hold are processed | `s6_9_control_frames_need_no_window` |
//! | 6.9 | an increment of 0 is an error of the stream or connection | `row_15_increments_of_zero` |
//! | 6.9 | WINDOW_UPDATE on an ended stream is no error | `s6_9_updates_on_ended_streams_are_no_error`, `s5_1_half_closed_remote_takes_no_data_or_headers` |
//! | 6.9 | each flow-controlled frame counts against the connection, in error too | `s6_9_frames_in_error_count_against_the_connection` |
//! | 6.9 | WINDOW_UPDATE of another length than 4 is a connection error FRAME_SIZE_ERROR | `decides_sizes_on_the_header` |
//! | 6.9.1 | no frame exceeds a window | `sending_follows_both_windows_and_changes_of_settings` |
//! | 6.9.1 | (MAY) an empty DATA with END_STREAM needs no window | `s6_9_1_an_empty_end_needs_no_window` |
//! | 6.9.1 | no window exceeds 2^31-1: the stream or the connection ends | `row_14_windows_that_overflow`, `refuses_growth_beyond_the_maximum` |
//! | 6.9.2 | a new INITIAL_WINDOW_SIZE moves all windows of streams by the difference | `sending_follows_both_windows_and_changes_of_settings`, `s6_9_2_settings_leave_the_connection_window_alone` |
//! | 6.9.2 | a negative window is kept, and nothing is sent until it is positive | `row_16_windows_that_become_negative`, `negative_window_sends_nothing_until_it_is_positive` |
//! | 6.9.2 | a change that makes a window overflow is a connection error FLOW_CONTROL_ERROR | `a_change_of_the_initial_window_that_overflows_ends_the_connection` |
//! | 6.9.3 | whoever lowers its window is prepared for more | not ours: ours is never lowered, and never below the first 65,535 |
//! | 6.10 | CONTINUATION on stream 0 is a connection error PROTOCOL_ERROR | `refuses_frames_on_the_wrong_kind_of_stream` |
//! | 6.10 | CONTINUATION without an open block before is a connection error PROTOCOL_ERROR | `connection_violations_end_the_connection` |
//! | 7 | unknown error codes cause nothing special | `maps_http_and_resets_as_the_documents_say`, `row_34_codes_of_resets` |
//! | 8.1 | nothing stands between HEADERS and its CONTINUATION | `connection_violations_end_the_connection` |
//! | 8.1 | trailers with pseudo-fields are malformed | `stream_violations_end_only_the_stream`, `row_26_malformed_messages` |
//! | 8.1 | a second field block without END_STREAM is malformed | `s8_1_a_second_head_is_malformed` |
//! | 8.1 | an answer before RST_STREAM with NO_ERROR is not discarded | `s8_1_an_answer_before_a_reset_counts`, `row_35_answer_before_the_request_has_ended` |
//! | 8.1.1 | malformed messages are a stream error PROTOCOL_ERROR, and no malformed answer is accepted | `stream_violations_end_only_the_stream`, `row_26_malformed_messages` |
//! | 8.1.1 | content-length equals the body, but for answers that have none | `stream_violations_end_only_the_stream`, `s8_1_1_answers_without_content_may_name_a_length` |
//! | 8.1.1 | intermediaries forward none | not ours: we are none |
//! | 8.2 | names are sent in lower case | `refuses_what_must_not_be_sent`, `request_head_is_what_grpc_asks_for` |
//! | 8.2.1 | forbidden characters in names and values, space around values | `refuses_malformed_requests`, `row_26_malformed_messages` |
//! | 8.2.2 | connection-specific fields are neither sent nor accepted; `te` says only `trailers` | `refuses_malformed_requests`, `refuses_what_must_not_be_sent`, `row_26_malformed_messages` |
//! | 8.2.3 | cookie lines are joined before they leave HTTP/2 | not ours: they never do, and no call has cookies |
//! | 8.3 | no other pseudo-fields are sent, none in the wrong place, late, or twice | `request_head_is_what_grpc_asks_for`, `refuses_malformed_requests`, `refuses_malformed_responses_and_trailers` |
//! | 8.3.1 | `host` is not used where `:authority` is; clients send `:authority` and no other `host` | `request_head_is_what_grpc_asks_for`, `refuses_what_must_not_be_sent`; the server uses neither |
//! | 8.3.1 | `:authority` has no user information | `urls_become_targets` |
//! | 8.3.1 | `:path` is not empty; `:method`, `:scheme`, `:path` are there once | `refuses_malformed_requests`, `request_head_is_what_grpc_asks_for` |
//! | 8.3.2 | `:status` is there, once | `refuses_malformed_responses_and_trailers`, `row_26_malformed_messages` |
//! | 8.4 | what may be pushed, and what a client does with it | not ours: no push |
//! | 8.4 | a server treats PUSH_PROMISE as a connection error PROTOCOL_ERROR | `row_25_push_promise_to_our_server` |
//! | 8.5 | CONNECT has no `:scheme` and no `:path`, else it is malformed | `refuses_malformed_requests` |
//! | 8.5 | what runs in a tunnel | not ours: the server answers each method but POST with 405, see `server_answers_what_is_not_grpc_with_http` |
//! | 8.6 | (no MUST: 101 is not supported) | `row_24_endless_interim_responses` |
//! | 8.7 | only what was never told to the application is called not processed | `s8_7_refused_streams_were_never_told_to_the_application`, `s6_8_our_last_stream_never_rises` |

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    /// Names of functions that are tests, in all files below a folder.
    fn collect(folder: &Path, names: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, names);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let tests = text.split("#[test]").skip(1);
                let named = tests.filter_map(|rest| rest.trim_start().strip_prefix("fn ")?.split('(').next());
                names.extend(named.map(str::to_owned));
            }
        }
    }

    #[test]
    fn each_rule_names_tests_that_exist() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut known = BTreeSet::new();
        collect(&root.join("src"), &mut known);
        collect(&root.join("tests"), &mut known);
        let rows: Vec<_> = include_str!("musts.rs").lines().filter_map(|l| l.strip_prefix("//! | ")).skip(2).collect();
        assert!(rows.len() > 80, "{}", rows.len());
        for row in rows {
            let cells: Vec<_> = row.trim_end_matches(" |").split(" | ").collect();
            let [section, _, shown] = cells[..] else { panic!("three columns: {row}") };
            assert!(section.starts_with(|c: char| ('3'..='8').contains(&c)), "{row}");
            let names: Vec<_> = shown.split('`').skip(1).step_by(2).collect();
            assert!(!names.is_empty() || shown.starts_with("not ours: "), "{row}");
            for name in names {
                assert!(known.contains(name), "no test {name} for: {row}");
            }
        }
        // And the other way round: what is named after a section stands in the table.
        for name in known.iter().filter(|n| n.starts_with('s') && n[1..].starts_with(|c: char| c.is_ascii_digit())) {
            assert!(include_str!("musts.rs").contains(&format!("`{name}`")), "{name} stands in no row");
        }
    }
}
